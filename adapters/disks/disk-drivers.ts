/**
 * All disk drivers as one: each disk and each snapshot goes to the driver whose name it bears. A new kind of
 * disk is a folder beside this file and a line in `DISK_DRIVERS`.
 *
 *     Vm.disks, Hypervisor.recordedDisks, restores of the adapters
 *                             |
 *                        DiskDrivers                 by name
 *            +-----------+--------+-------+--------+--------+-------+
 *        internal    external    lvm     rbd    reflink    zfs    copy
 */

import { rm } from 'node:fs/promises';

import { CheckpointError, describeError } from '../../src/errors.js';
import type { DiskDriver, ForkedDisk, StandIn } from '../../src/hypervisor/disk-driver.js';
import type {
  DiskDriverTraits,
  DiskSnapshot,
  OverwrittenFile,
  RecordedDisks,
  VmDisk,
  VmDisks,
} from '../../src/hypervisor/disks.js';
import type { JsonObject } from '../../src/types.js';
import type { DiskDriverKind, DiskMeans } from './disk-means.js';
import { copyDriver } from './copy/copy-driver.js';
import { lvmDriver } from './lvm/lvm-driver.js';
import { externalDriver } from './qcow2/external-driver.js';
import { internalDriver } from './qcow2/internal-driver.js';
import { storedImages } from './qcow2/stored-images.js';
import type { ImageSnapshots } from './qcow2/snapshot-takers.js';
import { rbdDriver } from './rbd/rbd-driver.js';
import { reflinkDriver } from './reflink/reflink-driver.js';
import { RolledBack, type Share } from './rolled-back.js';
import { zfsDriver } from './zfs/zfs-driver.js';

/** The drivers, in the order in which a plan prefers them and disks are offered to them. */
export const DISK_DRIVERS: readonly DiskDriverKind[] = [
  internalDriver,
  externalDriver,
  copyDriver,
  lvmDriver,
  rbdDriver,
  reflinkDriver,
  zfsDriver,
];

export class DiskDrivers implements RecordedDisks {
  readonly #drivers: readonly DiskDriver[];
  readonly #untried: Readonly<Record<string, string>>;

  /** @throws USAGE for an option of a driver that makes no sense */
  constructor(means: DiskMeans, kinds: readonly DiskDriverKind[] = DISK_DRIVERS) {
    this.#untried = means.untried ?? {};
    this.#drivers = kinds
      .filter(({ name }) => this.#untried[name] === undefined)
      .map((kind) => kind.open(means));
  }

  get drivers(): readonly DiskDriverTraits[] {
    return this.#drivers;
  }

  /** One driver after the other: a later one sees what the earlier ones can do. */
  async describe(disks: readonly VmDisk[]): Promise<readonly VmDisk[]> {
    let described = disks;
    for (const driver of this.#drivers) described = await driver.describe(described);
    return described;
  }

  /** See `VmDisks.checkStorage`. */
  async checkStorage(): Promise<boolean> {
    const asked = await Promise.all(this.#drivers.flatMap((driver) => driver.checkStorage?.() ?? []));
    return asked.includes(true);
  }

  /** See `VmDisks.plan`. */
  plan(name: string, disks: readonly VmDisk[], driver: string): readonly DiskSnapshot[] {
    const planning = this.#driver(driver);
    return planning?.takenBy === 'storage' ? planning.plan(name, disks) : [];
  }

  /** See `VmDisks.snapshot`. */
  async snapshot(name: string, disks: readonly VmDisk[], driver: string): Promise<readonly DiskSnapshot[]> {
    const taking = this.#driver(driver);
    if (taking === undefined) throw this.#unknown('DISK_SNAPSHOT_FAILED', driver);
    return taking.snapshot(name, disks);
  }

  /** See `VmDisks.makeDurable`. */
  async makeDurable(snapshots: readonly DiskSnapshot[]): Promise<void> {
    for (const { driver, snapshots: own } of this.#shares(snapshots, this.#drivers))
      await driver.makeDurable?.(own);
  }

  isRemovable({ driver }: DiskSnapshot): boolean {
    return this.#driver(driver)?.isRemovable ?? false;
  }

  /** Whatever becomes of one driver's, those of the others are dropped. */
  async drop(snapshots: readonly DiskSnapshot[]): Promise<void> {
    const failures: unknown[] = [];
    for (const { driver, snapshots: own } of this.#storageFirst(snapshots))
      await driver.drop(own).catch((error: unknown) => failures.push(error));
    const unknown = this.#unknownAmong(snapshots);
    if (unknown !== undefined) failures.push(this.#unknown('DISK_SNAPSHOT_FAILED', unknown.driver));
    if (failures.length > 1)
      throw new CheckpointError('DISK_SNAPSHOT_FAILED', failures.map(describeError).join('; '));
    if (failures.length === 1) throw failures[0];
  }

  remedy(snapshot: DiskSnapshot): string {
    const { driver: name, path } = snapshot;
    const driver = this.#driver(name);
    return driver?.remedy(snapshot) ?? `see to the snapshot of ${path} by ${name}: ${this.#whyUnknown(name)}`;
  }

  needs(snapshot: DiskSnapshot): readonly string[] {
    return this.#driver(snapshot.driver)?.needs?.(snapshot) ?? [];
  }

  overwrites(snapshot: DiskSnapshot): OverwrittenFile | undefined {
    return this.#driver(snapshot.driver)?.overwrites?.(snapshot);
  }

  /**
   * A restore asks this before it does anything.
   * @throws VM_UNSUPPORTED for snapshots of a driver that is not there
   */
  refuseUnknown(snapshots: readonly DiskSnapshot[]): void {
    const unknown = this.#unknownAmong(snapshots);
    if (unknown !== undefined) throw this.#unknown('VM_UNSUPPORTED', unknown.driver);
  }

  /**
   * See `DiskDriver.check`. What a rollback changes besides the disks is a warning, since nothing is touched yet.
   * @throws VM_UNSUPPORTED for snapshots of a driver that is not there
   */
  async check(snapshots: readonly DiskSnapshot[]): Promise<void> {
    this.refuseUnknown(snapshots);
    const shares = this.#shares(snapshots, this.#drivers);
    for (const { driver, snapshots: own } of shares) await driver.check(own);
    for (const { driver, snapshots: own } of shares)
      for (const text of (await driver.consequences?.(own)) ?? []) process.emitWarning(text);
  }

  /**
   * Puts all disks back, or none. The caller ends it by `settle` or `putBack`.
   * @throws RESTORE_FAILED, which says what is not as it was before, if anything
   */
  rollBack(snapshots: readonly DiskSnapshot[]): Promise<RolledBack> {
    return RolledBack.of(this.#storageFirst(snapshots));
  }

  /**
   * Stand-ins in the order of the snapshots; a snapshot that is put back in place has none. See
   * `DiskDriver.standIn`.
   */
  standIns(snapshots: readonly DiskSnapshot[], checkpointId: string): readonly StandIn[] {
    return snapshots.flatMap(
      (snapshot) => this.#driver(snapshot.driver)?.standIn?.(snapshot, checkpointId) ?? [],
    );
  }

  /** See `DiskDriver.fork`. @returns undefined for each snapshot that no fork can have */
  forks(snapshots: readonly DiskSnapshot[]): readonly (ForkedDisk | undefined)[] {
    this.refuseUnknown(snapshots);
    return snapshots.map((snapshot) => this.#driver(snapshot.driver)?.fork?.(snapshot));
  }

  /** See `DiskDriver.movedTo`. */
  movedTo(snapshot: DiskSnapshot, path: string): DiskSnapshot | undefined {
    return this.#driver(snapshot.driver)?.movedTo?.(snapshot, path);
  }

  /** See `DiskDriver.movedBy`. */
  movedBy(snapshot: DiskSnapshot, move: (path: string) => string): DiskSnapshot {
    return this.#driver(snapshot.driver)?.movedBy?.(snapshot, move) ?? snapshot;
  }

  #driver(name: string): DiskDriver | undefined {
    return this.#drivers.find((driver) => driver.name === name);
  }

  #shares(snapshots: readonly DiskSnapshot[], order: readonly DiskDriver[]): readonly Share[] {
    return order
      .map((driver) => ({ driver, snapshots: snapshots.filter((one) => one.driver === driver.name) }))
      .filter((share) => share.snapshots.length > 0);
  }

  #storageFirst(snapshots: readonly DiskSnapshot[]): readonly Share[] {
    const isStorage = ({ takenBy }: DiskDriver): boolean => takenBy === 'storage';
    const order = [
      ...this.#drivers.filter(isStorage),
      ...this.#drivers.filter((driver) => !isStorage(driver)),
    ];
    return this.#shares(snapshots, order);
  }

  #unknownAmong(snapshots: readonly DiskSnapshot[]): DiskSnapshot | undefined {
    return snapshots.find(({ driver }) => this.#driver(driver) === undefined);
  }

  #whyUnknown(name: string): string {
    return this.#untried[name] ?? 'this Cairn has no such disk driver';
  }

  #unknown(code: 'VM_UNSUPPORTED' | 'DISK_SNAPSHOT_FAILED', name: string): CheckpointError {
    return new CheckpointError(code, `disk snapshots by ${name}: ${this.#whyUnknown(name)}`, {
      hint: 'put the disk back, or remove the snapshot, with the tools of its storage; --keep-disks restores without the disks',
      detail: { driver: name },
    });
  }
}

export interface VmDiskMeans extends DiskMeans {
  /** The disks as the hypervisor lists them, with no `snapshotModes` yet. */
  readonly list: () => Promise<readonly VmDisk[]>;
  /** Disks that are listed beside these, and that no driver may look at. */
  readonly foreign?: () => readonly VmDisk[];
}

/** The disks of an attached VM, by all drivers. */
export class DriverDisks extends DiskDrivers implements VmDisks {
  readonly #means: VmDiskMeans;

  /** @throws USAGE for an option of a driver that makes no sense */
  constructor(means: VmDiskMeans) {
    super(means);
    this.#means = means;
  }

  async list(): Promise<readonly VmDisk[]> {
    const described = await this.describe(await this.#means.list());
    return [...described, ...(this.#means.foreign?.() ?? [])];
  }

  recorded(machine: JsonObject): RecordedDisks {
    return new DiskDrivers({ ...this.#means, cwd: folderOf(machine) });
  }
}

/**
 * Snapshots in images of a QEMU that does not run: qemu-img works on them.
 * @param machine `Vm.machine` as it was recorded
 * @param images of a VM that is restored: see `RestoredImages`
 */
export function disksOfStoppedQemu(machine: JsonObject, images: ImageSnapshots = storedImages): DiskDrivers {
  return new DiskDrivers({ cwd: folderOf(machine), images });
}

/** The folder of the recorded process, from which its relative paths start. */
export function folderOf({ cwd }: JsonObject): string {
  return typeof cwd === 'string' && cwd.startsWith('/') ? cwd : '/';
}

export async function removeStandIns(paths: Iterable<string>): Promise<void> {
  for (const path of paths) await rm(path, { force: true });
}
