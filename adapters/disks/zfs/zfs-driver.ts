/**
 * Disks on ZFS volumes (zvols), raw, opened as block devices: which can be snapshotted, and their snapshots
 * in the pause, by the program `zfs`. One command takes the snapshots of one pool, at one instant
 * (zfs-snapshot(8)); the VM stands still anyway.
 *
 * The snapshot is named `cairn-ID` and stays until somebody removes it.
 */

import type { CheckpointError } from '../../../src/errors.js';
import type { DiskDriver } from '../../../src/hypervisor/disk-driver.js';
import type { DiskSnapshot, VmDisk } from '../../../src/hypervisor/disks.js';
import type { DiskDriverKind } from '../disk-means.js';
import { runTool, type RunTool } from '../run-tool.js';
import { quoted } from '../shell-quote.js';
import { snapshotFailed } from '../snapshot-errors.js';
import { isVolumeName, moduleVersion, poolOf, volumeOf, zfsFailure, type ZfsVolume } from './zfs-command.js';
import { fullNameOf, ZFS, zvolRecord, zvolSnapshot, type ZvolSnapshot } from './zfs-record.js';
import { checkZvols, rollBackZvols, ZVOL_DEVICES, type ZvolDevices } from './zfs-restore.js';
import { flushDevice, volumeNameOf } from './zvol-device.js';

/** Releases of OpenZFS that this was tested with; docs/operations.md says what such a test needs. */
const PROVEN_VERSIONS: readonly string[] = [];
const UNPROVEN_VARIABLE = 'CAIRN_ZFS_UNPROVEN';
/**
 * The guest stands still. ZFS waits for a transaction group to be written, which a busy pool takes seconds
 * for.
 */
const SNAPSHOT_LIMIT_MS = 20_000;
/** Limit for removing a snapshot whose sister failed: the guest still stands. */
const UNDO_LIMIT_MS = 5000;
const REMOVE_LIMIT_MS = 30_000;
/** What zfs says when the snapshot is not there. */
const ABSENT = /could not find any snapshots to destroy|dataset does not exist/;

const TRAITS = {
  name: ZFS,
  medium: 'a ZFS volume (not proven)',
  takenBy: 'storage',
  isRemovable: true,
} as const;

export const zfsDriver: DiskDriverKind = { ...TRAITS, open: () => new ZfsDriver() };

export interface ZfsDevices extends ZvolDevices {
  /** `POOL/VOLUME`; undefined for what is no ZFS volume. */
  volumeNameOf(path: string): Promise<string | undefined>;
  flush(path: string): Promise<void>;
}

export interface ZfsDriverDeps {
  readonly run?: RunTool;
  readonly devices?: ZfsDevices;
  /** The operator takes what is not proven. */
  readonly allowsUnproven?: boolean;
}

const DEVICES: ZfsDevices = { ...ZVOL_DEVICES, volumeNameOf, flush: flushDevice };

export class ZfsDriver implements DiskDriver {
  readonly name = TRAITS.name;
  readonly medium = TRAITS.medium;
  readonly takenBy = TRAITS.takenBy;
  readonly isRemovable = TRAITS.isRemovable;
  readonly #run: RunTool;
  readonly #devices: ZfsDevices;
  readonly #allowsUnproven: boolean;
  /** Volumes that the last `describe` found, by id of the disk. */
  readonly #volumes = new Map<string, ZfsVolume>();

  constructor({
    run = runTool,
    devices = DEVICES,
    allowsUnproven = isUnprovenAllowed(),
  }: ZfsDriverDeps = {}) {
    this.#run = run;
    this.#devices = devices;
    this.#allowsUnproven = allowsUnproven;
  }

  /** Runs `zfs` only when there is a ZFS volume among them. */
  async describe(disks: readonly VmDisk[]): Promise<readonly VmDisk[]> {
    this.#volumes.clear();
    const described: VmDisk[] = [];
    for (const disk of disks) {
      const isCandidate = disk.writable && disk.snapshotModes.length === 0;
      const name = isCandidate ? await this.#devices.volumeNameOf(disk.path) : undefined;
      described.push(name === undefined ? disk : await this.#describe(disk, name));
    }
    return described;
  }

  plan(name: string, disks: readonly VmDisk[]): readonly DiskSnapshot[] {
    return disks.flatMap((disk) => {
      const volume = this.#volumes.get(disk.id);
      return volume === undefined ? [] : [zvolRecord(planned(name, disk, volume))];
    });
  }

  /** @throws DISK_SNAPSHOT_FAILED with nothing left behind, unless `detail.possiblyPresent` says so */
  async snapshot(name: string, disks: readonly VmDisk[]): Promise<readonly DiskSnapshot[]> {
    const snapshots = disks.map((disk) => {
      const volume = this.#volumes.get(disk.id);
      if (volume === undefined) throw failed(`${disk.path} is not known as a ZFS volume`, []);
      return planned(name, disk, volume);
    });
    for (const { path } of snapshots) await this.#devices.flush(path);
    const taken: ZvolSnapshot[] = [];
    for (const pool of new Set(snapshots.map(({ volume }) => poolOf(volume)))) {
      const ofPool = snapshots.filter(({ volume }) => poolOf(volume) === pool);
      const result = await this.#run('zfs', ['snapshot', ...ofPool.map(fullNameOf)], SNAPSHOT_LIMIT_MS);
      if (result.kind === 'done') {
        taken.push(...ofPool);
        continue;
      }
      // When one is refused, none of its pool is there.
      const left = await this.#remove(taken, UNDO_LIMIT_MS);
      // The program was killed, not what it had asked of the kernel.
      const late =
        result.kind === 'late'
          ? ofPool.map((one) => `${fullNameOf(one)}, which may still come into being`)
          : [];
      throw failed(zfsFailure('snapshot', result), [...left, ...late]);
    }
    return snapshots.map(zvolRecord);
  }

  async drop(snapshots: readonly DiskSnapshot[]): Promise<void> {
    const left = await this.#remove(snapshots.map(zvolSnapshot), REMOVE_LIMIT_MS);
    if (left.length > 0) throw failed('snapshots cannot be removed', left);
  }

  remedy(record: DiskSnapshot): string {
    return `zfs destroy ${quoted(fullNameOf(zvolSnapshot(record)))}`;
  }

  async check(snapshots: readonly DiskSnapshot[]): Promise<void> {
    await checkZvols(snapshots.map(zvolSnapshot), this.#run, this.#devices);
  }

  async rollBack(snapshots: readonly DiskSnapshot[]): Promise<void> {
    await rollBackZvols(snapshots.map(zvolSnapshot), this.#run, this.#devices);
  }

  async #describe(disk: VmDisk, name: string): Promise<VmDisk> {
    const not = (whyNoSnapshot: string): VmDisk => ({ ...disk, whyNoSnapshot });
    if (!isVolumeName(name))
      return not('it is a snapshot itself, or a ZFS volume whose name cairn does not pass on');
    const version = await moduleVersion(this.#run);
    if ('whyNot' in version) return not(version.whyNot);
    if (!this.#allowsUnproven && !PROVEN_VERSIONS.includes(version.value))
      return not(
        `snapshots of ZFS volumes were not proven with OpenZFS ${version.value}; ${UNPROVEN_VARIABLE}=1 takes them all the same, for trials`,
      );
    const volume = await volumeOf(this.#run, name);
    if ('whyNot' in volume) return not(volume.whyNot);
    this.#volumes.set(disk.id, volume.value);
    return { ...withoutReason(disk), snapshotModes: [ZFS] };
  }

  /** @returns what stays behind */
  async #remove(snapshots: readonly ZvolSnapshot[], limitMs: number): Promise<readonly string[]> {
    const left: string[] = [];
    for (const name of snapshots.map(fullNameOf)) {
      const failure = zfsFailure('destroy', await this.#run('zfs', ['destroy', name], limitMs));
      if (failure !== '' && !ABSENT.test(failure)) left.push(`${name} (${failure})`);
    }
    return left;
  }
}

/** What another driver said of it holds no longer. */
function withoutReason(disk: VmDisk): VmDisk {
  const copy: { whyNoSnapshot?: string } & VmDisk = { ...disk };
  delete copy.whyNoSnapshot;
  return copy;
}

function isUnprovenAllowed(): boolean {
  return process.env[UNPROVEN_VARIABLE] === '1';
}

function planned(name: string, { id, path }: VmDisk, { name: volume, guid }: ZfsVolume): ZvolSnapshot {
  return { diskId: id, path, volume, guid, snapshotName: `cairn-${name}` };
}

function failed(why: string, possiblyPresent: readonly string[]): CheckpointError {
  return snapshotFailed(
    'zfs',
    why,
    possiblyPresent,
    'the next checkpoint of the VM removes it; `zfs list -t snapshot` shows what is there, `zfs destroy` removes it by hand',
  );
}
