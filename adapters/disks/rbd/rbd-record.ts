/**
 * What a checkpoint records of a snapshot of an image of Ceph RBD (docs/format.md, disks), read back with
 * care.
 */

import { diskFeature, type DiskSnapshot } from '../../../src/hypervisor/disks.js';
import { fieldsOf } from '../record-fields.js';
import type { RbdLocation } from './image-names.js';

export const RBD = 'rbd';

export interface ImageSnapshot {
  readonly diskId: string;
  /** `rbd:POOL/[NAMESPACE/]IMAGE` */
  readonly path: string;
  /** Name of the snapshot in the image. */
  readonly snapshotName: string;
  readonly image: SnapshotImage;
}

/** Texts that nothing was said about are empty. */
export interface SnapshotImage extends RbdLocation {
  /** The id that Ceph gave the image; another image of the same name has another one. */
  readonly id: string;
}

export function imageRecord({ diskId, path, snapshotName, image }: ImageSnapshot): DiskSnapshot {
  const data = { snapshotName, overlayPath: '', image: { ...image } };
  return { diskId, path, driver: RBD, data, feature: diskFeature(RBD) };
}

/** Names are texts here; whether `rbd` would take them is for whoever passes them on. @throws REPO_DAMAGED */
export function imageSnapshot(record: DiskSnapshot): ImageSnapshot {
  const { diskId, path } = record;
  const fields = fieldsOf(record);
  const image = fields.fields('image');
  return {
    diskId,
    path,
    snapshotName: fields.text('snapshotName'),
    image: {
      pool: image.text('pool'),
      namespace: image.text('namespace'),
      name: image.text('name'),
      id: image.text('id'),
      conf: image.text('conf'),
      user: image.text('user'),
      monitors: image.text('monitors'),
    },
  };
}
