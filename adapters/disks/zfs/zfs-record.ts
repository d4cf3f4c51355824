/** What a checkpoint records of a snapshot of a ZFS volume (docs/format.md, disks), read back with care. */

import { diskFeature, type DiskSnapshot } from '../../../src/hypervisor/disks.js';
import { fieldsOf } from '../record-fields.js';
import { isSnapshotName, isVolumeName } from './zfs-command.js';

export const ZFS = 'zfs';

export interface ZvolSnapshot {
  readonly diskId: string;
  /** Path of the device, as the hypervisor names it. */
  readonly path: string;
  /** `POOL/VOLUME` */
  readonly volume: string;
  /** The number that ZFS gave the volume. */
  readonly guid: string;
  /** What follows the @. */
  readonly snapshotName: string;
}

export function zvolRecord({ diskId, path, volume, guid, snapshotName }: ZvolSnapshot): DiskSnapshot {
  return { diskId, path, driver: ZFS, data: { volume, guid, snapshotName }, feature: diskFeature(ZFS) };
}

/** @throws REPO_DAMAGED, also for names that are none of ZFS: they become arguments */
export function zvolSnapshot(record: DiskSnapshot): ZvolSnapshot {
  const { diskId, path } = record;
  const fields = fieldsOf(record);
  const [volume, guid, snapshotName] = [
    fields.text('volume'),
    fields.text('guid'),
    fields.text('snapshotName'),
  ];
  if (!isVolumeName(volume)) fields.wrong('volume', 'the name of a ZFS volume');
  if (!isSnapshotName(snapshotName)) fields.wrong('snapshotName', 'the name of a snapshot');
  return { diskId, path, volume, guid, snapshotName };
}

export function fullNameOf({ volume, snapshotName }: Pick<ZvolSnapshot, 'volume' | 'snapshotName'>): string {
  return `${volume}@${snapshotName}`;
}
