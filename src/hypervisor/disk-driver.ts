/**
 * The contract of a disk driver: one way to snapshot disks in a pause, to put them back, and to remove the
 * snapshots. Drivers are in `adapters/disks`, a folder for each kind of storage; they are put together by
 * `adapters/disks/disk-drivers.ts`, which hands each snapshot to the driver that its record names. The core
 * knows drivers by their traits alone.
 *
 *     before the pause   describe -> checkStorage -> plan
 *     in the pause       snapshot                        all disks, or none
 *     before the commit  makeDurable
 *     later              drop | remedy                   the checkpoint has failed, or is forgotten
 *     restore            check -> (standIn, new VM)      nothing is written before all memory has been read
 *                        -> keep -> rollBack             of each disk; rollBack of what was kept when one fails
 *                        -> drop of what was kept
 *
 * A driver reads a record (`DiskSnapshot.data`) only through a reader of its own that checks every field: it
 * comes out of a repository. Wrong fields are REPO_DAMAGED; names that would become arguments of a program
 * are checked besides.
 */

import type { DiskDriverTraits, DiskSnapshot, OverwrittenFile, VmDisk } from './disks.js';

export interface DiskDriver extends DiskDriverTraits {
  /**
   * Returns the same disks, in the same order. Disks that the driver can snapshot have its name among their
   * `snapshotModes`; disks that are its kind but cannot be snapshotted now may say why. What it finds out is
   * kept for the calls below. Asks nobody when no disk is its kind.
   */
  describe(disks: readonly VmDisk[]): Promise<readonly VmDisk[]>;
  /** See `VmDisks.checkStorage`. Absent where the storage cannot hang by itself. */
  checkStorage?(): Promise<boolean>;
  /** What `snapshot` would take: the same disks by the same names. */
  plan(name: string, disks: readonly VmDisk[]): readonly DiskSnapshot[];
  /**
   * Snapshots the disks of the paused VM, all or none, within a time limit.
   * @param disks as `describe` has given them last
   * @throws DISK_SNAPSHOT_FAILED, see `VmDisks.snapshot`; VM_GONE
   */
  snapshot(name: string, disks: readonly VmDisk[]): Promise<readonly DiskSnapshot[]>;
  /** See `VmDisks.makeDurable`. Absent where a snapshot is durable as soon as it is taken. */
  makeDurable?(snapshots: readonly DiskSnapshot[]): Promise<void>;

  /** See `RecordedDisks.drop`. */
  drop(snapshots: readonly DiskSnapshot[]): Promise<void>;
  /** See `RecordedDisks.remedy`. */
  remedy(snapshot: DiskSnapshot): string;
  /** See `RecordedDisks.needs`. Absent: none. */
  needs?(snapshot: DiskSnapshot): readonly string[];
  /** See `RecordedDisks.overwrites`. Absent: undefined. */
  overwrites?(snapshot: DiskSnapshot): OverwrittenFile | undefined;

  /**
   * Whether all can still be had, before anything is touched.
   * @throws RESTORE_FAILED when one is gone, DISK_CHANGED when what it needs was written to,
   *   RESTORE_TARGET_BUSY while the disk is in use
   */
  check(snapshots: readonly DiskSnapshot[]): Promise<void>;
  /** What `rollBack` changes besides, in words for the operator. Absent: nothing. */
  consequences?(snapshots: readonly DiskSnapshot[]): Promise<readonly string[]>;
  /**
   * Snapshots disks that no VM runs on, as they are before `rollBack`: a `rollBack` of what it returns is the way
   * back, and `drop` lets go of it. Changes nothing that a VM would see. Absent: there is no way back, and the disks
   * go last.
   * @param name as in `snapshot`
   * @returns in the order of `snapshots`; undefined for a disk without a way back
   * @throws RESTORE_FAILED with nothing left behind
   */
  keep?(name: string, snapshots: readonly DiskSnapshot[]): Promise<readonly (DiskSnapshot | undefined)[]>;
  /**
   * Puts the disks back in place; the snapshots stay. Does nothing where there is a stand-in. May fail in the middle.
   * @throws RESTORE_FAILED
   */
  rollBack(snapshots: readonly DiskSnapshot[]): Promise<void>;
  /**
   * What a restored VM gets in place of a snapshot that is never written to. Absent when `rollBack` puts
   * disks back.
   */
  standIn?(snapshot: DiskSnapshot, checkpointId: string): StandIn;
  /** What forks of the VM get in place of the disk. Absent: nobody can have the snapshot beside the VM that goes on. */
  fork?(snapshot: DiskSnapshot): ForkedDisk;
  /**
   * The snapshot, when the operator says that the disk lies at `path` now. Undefined: the disk there is taken
   * as it is. Absent: always undefined.
   */
  movedTo?(snapshot: DiskSnapshot, path: string): DiskSnapshot | undefined;
  /**
   * The snapshot, when whole folders have moved, with all that lies in them. Absent: it is not found by paths.
   * @param move where an absolute path lies now; the same text for what has not moved
   */
  movedBy?(snapshot: DiskSnapshot, move: (path: string) => string): DiskSnapshot;
}

/** A new image on top of one that must stay as it is. */
export interface StandIn {
  /** The image that must stay as it is, absolute. */
  readonly path: string;
  /**
   * Makes it. To be removed with `removeStandIns` when the restore fails.
   * @param format of the image at `path`
   * @returns absolute path of a qcow2 image
   * @throws RESTORE_FAILED with none left behind
   */
  create(format: string): Promise<string>;
  /** Of the image that `create` makes; default qcow2. */
  readonly format?: string;
}

/** A disk of which several machines go on from one checkpoint, each by itself. */
export interface ForkedDisk {
  readonly diskId: string;
  /** The image that the VM had at the checkpoint, absolute. Nobody writes to it here. */
  readonly path: string;
  /** Whether all can still be had. @throws RESTORE_FAILED, DISK_CHANGED, RESTORE_TARGET_BUSY */
  check(): Promise<void>;
  /**
   * Makes what all children stand on, where that has to be made.
   * @param place a file that is not there yet
   * @throws RESTORE_FAILED
   */
  prepare(place: string): Promise<void>;
  /** What one child gets, at `place`, without an extension. After `prepare`. */
  standIn(place: string): StandIn;
}
