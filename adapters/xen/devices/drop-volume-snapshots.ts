/** Snapshots of logical volumes, of checkpoints that are gone. Those in qcow2 images stay: the QEMU of a domain opens them without locks. */

import { CheckpointError } from '../../../src/errors.js';
import type { DiskSnapshot } from '../../../src/hypervisor/disks.js';
import type { JsonObject } from '../../../src/types.js';
import { LvmDisks } from '../../disks/lvm/lvm-disks.js';
import { untestedImages } from './disks.js';

/** See `Hypervisor.dropDiskSnapshots`. */
export async function dropVolumeSnapshots(
  _machine: JsonObject,
  snapshots: readonly DiskSnapshot[],
): Promise<void> {
  await new LvmDisks().drop(snapshots.filter(({ mode }) => mode === 'lvm'));
  if (snapshots.some(({ mode }) => mode === 'rbd')) throw untestedImages('DISK_SNAPSHOT_FAILED');
  if (!snapshots.some(({ mode }) => mode === 'internal')) return;
  throw new CheckpointError('DISK_SNAPSHOT_FAILED', 'whether a domain has the image open cannot be told');
}
