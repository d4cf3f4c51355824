/**
 * Disks of a VM, and what a checkpoint keeps of them. The core names no kind of disk: whoever takes a
 * snapshot is a driver, known by its name (`disk-driver.ts`), and what the driver needs to know again is JSON
 * that only the driver reads.
 */

import type { JsonObject } from '../types.js';

export interface VmDisk {
  /** What the hypervisor calls it (a QEMU node or device name). */
  readonly id: string;
  readonly path: string;
  readonly format: string;
  readonly writable: boolean;
  readonly virtualSizeBytes: number;
  /** What lies in the image is encrypted by the hypervisor. */
  readonly isEncrypted?: true;
  /** Names of the drivers that can snapshot it inside a pause; empty when none can. */
  readonly snapshotModes: readonly string[];
  /** Why there are none, where more can be said than that no driver knows the format. */
  readonly whyNoSnapshot?: string;
  /** What lies below `path`, top first, named as the hypervisor does. */
  readonly backingPaths?: readonly string[];
}

/** What is known of a driver without any VM. */
export interface DiskDriverTraits {
  /** What `--disks` and manifests call it: lower-case letters, digits and dashes. */
  readonly name: string;
  /** The disks that it is for, in words: "qcow2", "a logical volume". */
  readonly medium: string;
  /**
   * `hypervisor`: whoever runs the VM takes the snapshots, and one such driver is used for all disks of a
   * checkpoint. `storage`: something beside the VM does, and may do so even after this process has died; left
   * to the hook of the operator when there is one. `manifest`: the driver itself does, and the manifest holds all
   * of it; used beside a hook as well, since it is in nobody's way.
   */
  readonly takenBy: 'hypervisor' | 'storage' | 'manifest';
  /** Largest virtual size of a disk up to which the driver is chosen by itself; undefined: any. */
  readonly autoLimitBytes?: number;
  /**
   * False: snapshots are never dropped by `drop`, which refuses them; `remedy` says what an operator can do.
   */
  readonly isRemovable: boolean;
}

/** A disk snapshot that belongs to a checkpoint. Kept in the manifest. */
export interface DiskSnapshot {
  readonly diskId: string;
  /** The name that the hypervisor has for the disk: it may be relative to its folder, or no path at all. */
  readonly path: string;
  /** Name of the driver that took it. */
  readonly driver: string;
  /** What the driver needs to find it again. The core stores it and never reads it. */
  readonly data: JsonObject;
  /**
   * Feature that a manifest with it requires (docs/format.md), so that a program which knows no such driver
   * does not touch it.
   */
  readonly feature?: string;
  /**
   * Key of the manifest that it was read from, for messages about damage; absent for one that was just taken.
   */
  readonly recordedIn?: string;
}

/** Feature that a driver may have manifests with its snapshots require: see `DiskSnapshot.feature`. */
export function diskFeature(driver: string): string {
  return `${driver}-snapshot`;
}

/** The disks of an attached VM. */
export interface VmDisks {
  /** Drivers that a plan may name, in the order in which it prefers them. */
  readonly drivers: readonly DiskDriverTraits[];

  /** @throws VM_GONE, VM_BUSY */
  list(): Promise<readonly VmDisk[]>;
  /**
   * Asks the storage of the disks that `list` has given last whether it answers, where it can be asked beside
   * the VM. A VM that is stopped while its storage does not answer stands still until it does: so right
   * before the pause, whatever is done about the disks in it.
   * @returns whether anybody was asked, which takes time
   * @throws DISK_STALLED
   */
  checkStorage(): Promise<boolean>;
  /**
   * What `snapshot` would take with these arguments, if others than the hypervisor take it: should this
   * process die meanwhile, it may be there all the same, or come into being later. Otherwise empty.
   */
  plan(name: string, disks: readonly VmDisk[], driver: string): readonly DiskSnapshot[];
  /**
   * Snapshots all given disks of the paused VM, or none.
   * @param disks as `list` has given them last
   * @throws DISK_SNAPSHOT_FAILED with nothing left behind, unless `detail.possiblyPresent` names what may be
   *   there because nobody answered
   */
  snapshot(name: string, disks: readonly VmDisk[], driver: string): Promise<readonly DiskSnapshot[]>;
  /**
   * After this, snapshots that were just taken outlast a power cut. Called when the VM runs again and before
   * the checkpoint is committed, since it may take long.
   * @throws DISK_SNAPSHOT_FAILED
   */
  makeDurable(snapshots: readonly DiskSnapshot[]): Promise<void>;
  /**
   * Removes snapshots of a checkpoint that was not committed, where they are there.
   * @throws DISK_SNAPSHOT_FAILED naming what stays behind
   */
  drop(snapshots: readonly DiskSnapshot[]): Promise<void>;
  /**
   * Snapshots of committed checkpoints of this VM.
   * @param machine `Vm.machine` as such a checkpoint recorded it
   */
  recorded(machine: JsonObject): RecordedDisks;
}

/**
 * Disk snapshots as the manifests of one machine record them. What a manifest says is not trusted: each call
 * may throw REPO_DAMAGED, naming the manifest.
 */
export interface RecordedDisks {
  /** Whether `drop` can remove it. If not, `remedy` says what an operator can do. */
  isRemovable(snapshot: DiskSnapshot): boolean;
  /**
   * Removes snapshots. A snapshot that is gone already is no failure.
   * @throws DISK_SNAPSHOT_FAILED naming what stays behind, for example because it is in use
   */
  drop(snapshots: readonly DiskSnapshot[]): Promise<void>;
  /** What removes it by hand: a command, or what is to be done. */
  remedy(snapshot: DiskSnapshot): string;
  /** Files that a restore needs as they are: whoever writes to one destroys the snapshot. Absolute. */
  needs(snapshot: DiskSnapshot): readonly string[];
  /**
   * The file that putting the disk back writes to, where other snapshots may need it; undefined when that
   * harms no other.
   */
  overwrites(snapshot: DiskSnapshot): OverwrittenFile | undefined;
}

export interface OverwrittenFile {
  /** Absolute. */
  readonly path: string;
  /** How to have the state of the snapshot without that, for an operator. */
  readonly instead: string;
}
