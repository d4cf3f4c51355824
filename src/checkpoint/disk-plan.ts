/**
 * What happens to the VM's disks in the pause. Memory without the disks of the same instant restores into a guest whose
 * page cache and file system disagree, so a VM with writable disks is never checkpointed without a word.
 */

import { CheckpointError } from '../errors.js';
import type { DiskSnapshotMode, VmDisk } from '../hypervisor/vm.js';
import type { DiskPlan } from './cycle.js';

export interface DiskOptions {
  /** Leave the disks alone; the operator knows what that means. */
  readonly memoryOnly: boolean;
  /** `auto`: by the size of the disks, see `INTERNAL_LIMIT_BYTES`. */
  readonly mode: DiskSnapshotMode | 'auto';
  /** A hook command takes care of the disks. */
  readonly hookCoversDisks: boolean;
}

/**
 * Up to this virtual size the snapshot is internal. An internal qcow2 snapshot copies the L1 table and raises the
 * refcount of every mapped cluster inside the pause: 2 to 6 ms for a 4 GiB image, 26 ms for a fully mapped one of 20 GiB, 144 ms for
 * 100 GiB. An external one costs the same few milliseconds at any size but leaves a chain of files to look after.
 */
export const INTERNAL_LIMIT_BYTES = 16 * 2 ** 30;

/** @throws DISK_NOT_COVERED naming the disks that nobody would snapshot */
export function planDisks(disks: readonly VmDisk[], options: DiskOptions): DiskPlan {
  const none: DiskPlan = { disks: [], mode: 'internal' };
  const writable = disks.filter((disk) => disk.writable);
  if (options.memoryOnly || writable.length === 0) return none;
  const largest = Math.max(...writable.map((disk) => disk.virtualSizeBytes));
  const mode =
    options.mode === 'auto' ? (largest <= INTERNAL_LIMIT_BYTES ? 'internal' : 'external') : options.mode;
  const uncovered = writable.filter((disk) => !disk.snapshotModes.includes(mode));
  if (uncovered.length === 0) return { disks: writable, mode };
  if (options.hookCoversDisks)
    return { disks: writable.filter((disk) => disk.snapshotModes.includes(mode)), mode };
  const names = uncovered.map((disk) => `${disk.id} (${disk.format} ${disk.path})`).join(', ');
  throw new CheckpointError('DISK_NOT_COVERED', `no ${mode} snapshot is possible of: ${names}`, {
    hint:
      'snapshot it yourself in the pause with --hook, use qcow2, or pass --memory-only: ' +
      'then the checkpoint holds memory and devices alone, and a restore is only right with disks put back to the same instant',
    detail: { disks: uncovered.map((disk) => disk.id) },
  });
}
