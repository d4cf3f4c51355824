/**
 * What a checkpoint records of a snapshot of a logical volume (docs/format.md, disks), read back with care.
 */

import { diskFeature, type DiskSnapshot } from '../../../src/hypervisor/disks.js';
import { fieldsOf } from '../record-fields.js';

export const LVM = 'lvm';

export interface VolumeSnapshot {
  readonly diskId: string;
  /** Path of the device, as the hypervisor names it. */
  readonly path: string;
  /** Name of the snapshot in the volume group of `volume`. */
  readonly snapshotName: string;
  readonly volume: SnapshotVolume;
}

export interface SnapshotVolume {
  readonly vgName: string;
  readonly name: string;
  /** The uuid as lvm2 writes it. */
  readonly uuid: string;
}

export function volumeRecord({ diskId, path, snapshotName, volume }: VolumeSnapshot): DiskSnapshot {
  const data = { snapshotName, overlayPath: '', volume: { ...volume } };
  return { diskId, path, driver: LVM, data, feature: diskFeature(LVM) };
}

/** Names are texts here; whether lvm2 would take them is for whoever passes them on. @throws REPO_DAMAGED */
export function volumeSnapshot(record: DiskSnapshot): VolumeSnapshot {
  const { diskId, path } = record;
  const fields = fieldsOf(record);
  const volume = fields.fields('volume');
  return {
    diskId,
    path,
    snapshotName: fields.text('snapshotName'),
    volume: { vgName: volume.text('vgName'), name: volume.text('name'), uuid: volume.text('uuid') },
  };
}
