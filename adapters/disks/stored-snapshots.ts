/**
 * Snapshots of disks, of checkpoints that are gone and of a VM that does not run: qcow2 images by qemu-img, logical volumes by lvm2, images of
 * Ceph by rbd.
 */

import { resolve } from 'node:path';

import { CheckpointError, describeError } from '../../src/errors.js';
import type { DiskSnapshot } from '../../src/hypervisor/disks.js';
import type { JsonObject } from '../../src/types.js';
import { LvmDisks } from './lvm/lvm-disks.js';
import { RbdDisks } from './rbd/rbd-disks.js';
import { asText } from '../qemu/qmp-json.js';
import { deleteSnapshot, imageInfo } from './qcow2/qemu-img.js';

/** See `Hypervisor.dropDiskSnapshots`. */
export async function dropStoredSnapshots(
  machine: JsonObject,
  snapshots: readonly DiskSnapshot[],
): Promise<void> {
  const left: string[] = [];
  for (const snapshot of snapshots) {
    try {
      if (snapshot.mode === 'internal') await dropInternal(machine, snapshot);
      if (snapshot.mode === 'lvm') await new LvmDisks().drop([snapshot]);
      if (snapshot.mode === 'rbd') await new RbdDisks().drop([snapshot]);
    } catch (error) {
      left.push(describeError(error));
    }
  }
  if (left.length > 0) throw new CheckpointError('DISK_SNAPSHOT_FAILED', left.join('; '));
}

async function dropInternal(machine: JsonObject, { path, snapshotName }: DiskSnapshot): Promise<void> {
  // Recorded as QEMU names it, which may be relative to its folder.
  const image = resolve(asText(machine.cwd) || '/', path);
  const { snapshotNames } = await imageInfo(image, 'qcow2');
  if (snapshotNames.includes(snapshotName)) await deleteSnapshot(image, snapshotName);
}
