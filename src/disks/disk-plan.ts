/**
 * What happens to the VM's disks in the pause. Memory without the disks of the same instant restores into a
 * guest whose page cache and file system disagree, so a VM with writable disks is never checkpointed without
 * a word.
 */

import { CheckpointError } from '../errors.js';

import type { DiskDriverTraits, VmDisk } from '../hypervisor/disks.js';

/** Disks that one driver snapshots together. */
export interface DiskGroup {
  readonly driver: string;
  readonly disks: readonly VmDisk[];
}

/** Disks by driver, in the order in which the snapshots are taken. */
export type DiskPlan = readonly DiskGroup[];

/** Name of a driver, or `auto`. */
export type DiskMode = string;

export const AUTO_DISK_MODE: DiskMode = 'auto';

export interface DiskOptions {
  /** Leave the disks alone; the operator knows what that means. */
  readonly memoryOnly: boolean;
  /**
   * The driver of this name takes every disk that it can. It is then the only driver of a hypervisor; those
   * of a storage are used besides, unless a hook sees to their disks, and those of a manifest always.
   */
  readonly mode: DiskMode;
  /** A hook command takes care of the disks. */
  readonly hookCoversDisks: boolean;
}

/**
 * Each disk goes to the first driver in play that can snapshot it, the one that `mode` names before all
 * others.
 * @param drivers `VmDisks.drivers`
 * @throws DISK_NOT_COVERED naming the disks that nobody would snapshot
 */
export function planDisks(
  disks: readonly VmDisk[],
  drivers: readonly DiskDriverTraits[],
  options: DiskOptions,
): DiskPlan {
  const writable = disks.filter((disk) => disk.writable);
  if (options.memoryOnly || writable.length === 0) return [];
  const inPlay = driversInPlay(writable, drivers, options);
  const driverOf = new Map(
    writable.map((disk) => [disk, inPlay.find(({ name }) => disk.snapshotModes.includes(name))]),
  );
  const plan = drivers
    .map(({ name }) => ({
      driver: name,
      disks: writable.filter((disk) => driverOf.get(disk)?.name === name),
    }))
    .filter((group) => group.disks.length > 0);
  const uncovered = writable.filter((disk) => driverOf.get(disk) === undefined);
  if (uncovered.length === 0 || options.hookCoversDisks) return plan;
  throw notCovered(uncovered, inPlay, drivers);
}

/** The drivers that may be used, the preferred one first. */
function driversInPlay(
  disks: readonly VmDisk[],
  drivers: readonly DiskDriverTraits[],
  { mode, hookCoversDisks }: DiskOptions,
): readonly DiskDriverTraits[] {
  const named = drivers.find(({ name }) => name === mode);
  const ofHypervisor =
    named?.takenBy === 'hypervisor'
      ? named
      : drivers.find((driver) => driver.takenBy === 'hypervisor' && isWithinLimit(driver, disks));
  const beside = drivers.filter(
    (driver) =>
      driver !== named &&
      (driver.takenBy === 'manifest' || (driver.takenBy === 'storage' && !hookCoversDisks)),
  );
  return [named, ofHypervisor, ...beside].filter((driver) => driver !== undefined);
}

/** Whether all disks that the driver would take are within its limit. */
function isWithinLimit(
  { name, autoLimitBytes = Infinity }: DiskDriverTraits,
  disks: readonly VmDisk[],
): boolean {
  return disks.every(
    ({ snapshotModes, virtualSizeBytes }) =>
      !snapshotModes.includes(name) || virtualSizeBytes <= autoLimitBytes,
  );
}

function notCovered(
  disks: readonly VmDisk[],
  tried: readonly DiskDriverTraits[],
  drivers: readonly DiskDriverTraits[],
): CheckpointError {
  const names = disks.map((disk) => `${disk.id} (${disk.format} ${disk.path}${whyOf(disk)})`).join(', ');
  const media = new Set(drivers.map(({ medium }) => medium));
  const use = media.size === 0 ? '' : `use ${OR.format(media)}, `;
  const by = tried.map(({ name }) => name).join(', ') || 'none';
  return new CheckpointError('DISK_NOT_COVERED', `no snapshot (${by}) is possible of: ${names}`, {
    hint:
      `snapshot it yourself in the pause with --hook, ${use}or pass --memory-only: ` +
      'then the checkpoint holds memory and devices alone, and a restore is only right with disks put back to the same instant',
    detail: { disks: disks.map((disk) => disk.id) },
  });
}

/** British, for want of a comma before "or". */
const OR = new Intl.ListFormat('en-GB', { type: 'disjunction' });

function whyOf({ whyNoSnapshot }: VmDisk): string {
  return whyNoSnapshot === undefined ? '' : `: ${whyNoSnapshot}`;
}
