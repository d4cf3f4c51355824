/**
 * What happens to the VM's disks in the pause. Memory without the disks of the same instant restores into a guest whose
 * page cache and file system disagree, so a VM with writable disks is never checkpointed without a word.
 */

import { CheckpointError } from '../errors.js';
import type { DiskSnapshotMode, VmDisk } from '../hypervisor/disks.js';
import type { DiskGroup, DiskPlan } from '../checkpoint/cycle.js';

/**
 * What to do with qcow2 images; logical volumes of LVM and images of Ceph are snapshotted unless a hook is there to see to them. `lvm`,
 * `rbd`: those then as well.
 */
export type DiskMode = DiskSnapshotMode | 'auto';

export interface DiskOptions {
  /** Leave the disks alone; the operator knows what that means. */
  readonly memoryOnly: boolean;
  /** `auto`, `lvm`, `rbd`: of qcow2 images by their size, see `INTERNAL_LIMIT_BYTES`. */
  readonly mode: DiskMode;
  /** A hook command takes care of the disks. */
  readonly hookCoversDisks: boolean;
}

/**
 * Up to this virtual size the snapshot is internal. An internal qcow2 snapshot copies the L1 table and raises the
 * refcount of every mapped cluster inside the pause: 2 to 6 ms for a 4 GiB image, 26 ms for a fully mapped one of 20 GiB, 144 ms for
 * 100 GiB. An external one costs the same few milliseconds at any size but leaves a chain of files to look after.
 */
export const INTERNAL_LIMIT_BYTES = 16 * 2 ** 30;

/** Snapshots that the storage takes. */
const STORAGE_MODES = ['lvm', 'rbd'] as const;

/** @throws DISK_NOT_COVERED naming the disks that nobody would snapshot */
export function planDisks(disks: readonly VmDisk[], options: DiskOptions): DiskPlan {
  const writable = disks.filter((disk) => disk.writable);
  if (options.memoryOnly || writable.length === 0) return [];
  const imageMode = imageModeFor(writable, options.mode);
  const groups: readonly DiskGroup[] = [
    { mode: imageMode, disks: writable.filter(({ snapshotModes }) => snapshotModes.includes(imageMode)) },
    ...STORAGE_MODES.map((mode) => ({
      mode,
      disks:
        options.hookCoversDisks && options.mode !== mode
          ? []
          : writable.filter(({ snapshotModes }) => snapshotModes.includes(mode)),
    })),
  ];
  const uncovered = writable.filter((disk) => !groups.some((group) => group.disks.includes(disk)));
  const plan = groups.filter((group) => group.disks.length > 0);
  if (uncovered.length === 0 || options.hookCoversDisks) return plan;
  const names = uncovered.map((disk) => `${disk.id} (${disk.format} ${disk.path}${whyOf(disk)})`).join(', ');
  throw new CheckpointError('DISK_NOT_COVERED', `no ${imageMode} snapshot is possible of: ${names}`, {
    hint:
      'snapshot it yourself in the pause with --hook, use qcow2, a logical volume or Ceph RBD, or pass --memory-only: ' +
      'then the checkpoint holds memory and devices alone, and a restore is only right with disks put back to the same instant',
    detail: { disks: uncovered.map((disk) => disk.id) },
  });
}

function imageModeFor(disks: readonly VmDisk[], mode: DiskMode): 'internal' | 'external' {
  if (mode === 'internal' || mode === 'external') return mode;
  const images = disks.filter(
    ({ snapshotModes }) => !STORAGE_MODES.some((storage) => snapshotModes.includes(storage)),
  );
  const largest = Math.max(0, ...images.map((disk) => disk.virtualSizeBytes));
  return largest <= INTERNAL_LIMIT_BYTES ? 'internal' : 'external';
}

function whyOf({ whyNoSnapshot }: VmDisk): string {
  return whyNoSnapshot === undefined ? '' : `: ${whyNoSnapshot}`;
}
