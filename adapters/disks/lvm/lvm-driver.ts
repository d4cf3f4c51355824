/**
 * Disks on logical volumes: which can be snapshotted, and their snapshots in the pause. The driver serves
 * every hypervisor alike: it needs no more of a disk than its path.
 *
 * The snapshot (`lvcreate -s`, read-only) is named `LV-cairn-ID` and stays until somebody removes it. A thick
 * volume needs room for all that changes while it is there; a snapshot that has overflowed is worth nothing,
 * which a restore notices.
 */

import { CheckpointError } from '../../../src/errors.js';
import type { DiskDriver } from '../../../src/hypervisor/disk-driver.js';
import type { DiskSnapshot, VmDisk } from '../../../src/hypervisor/disks.js';
import { optionsFor, type DiskDriverKind } from '../disk-means.js';
import { failureOf, runTool, type RunTool } from '../run-tool.js';
import { quoted } from '../shell-quote.js';
import { diskLost, snapshotFailed } from '../snapshot-errors.js';
import { deviceNumber, isVolumeName, listVolumes, type LogicalVolume } from './logical-volumes.js';
import { LVM, volumeRecord, volumeSnapshot, type VolumeSnapshot } from './lvm-record.js';
import { checkVolumes, pairsOf, writeBackVolumes } from './lvm-restore.js';
import { resumeSuspended } from './suspended-devices.js';

/** Kinds that this was tested with on a real device-mapper. */
const KINDS = ['linear', 'thin'];
/** The guest stands still. lvcreate takes some 100 ms, longer while others hold the lock of the group. */
const SNAPSHOT_LIMIT_MS = 20_000;
const REMOVE_LIMIT_MS = 30_000;
/** Size of a snapshot of a thick volume, when the operator names none. */
const DEFAULT_SNAPSHOT_SIZE = '20%ORIGIN';
const SIZE = /^[0-9]{1,12}(\.[0-9]{1,6})?[bBsSkKmMgGtT]$/;
const EXTENTS = /^[0-9]{1,3}%(ORIGIN|VG|FREE)$/;

const TRAITS = { name: LVM, medium: 'a logical volume', takenBy: 'storage', isRemovable: true } as const;

export const lvmDriver: DiskDriverKind = {
  ...TRAITS,
  settings: [
    {
      flags: '--lvm-size <size>',
      description: `room for the snapshot of each thick logical volume, as lvcreate has it (default: ${DEFAULT_SNAPSHOT_SIZE})`,
      key: 'snapshotSize',
    },
  ],
  open: (means) => {
    const { snapshotSize } = optionsFor(means, LVM);
    return new LvmDriver({ snapshotSize: typeof snapshotSize === 'string' ? snapshotSize : undefined });
  },
};

export interface LvmOptions {
  /** Size of each snapshot of a thick volume, as `snapshotSizeArguments` takes it. Default `20%ORIGIN`. */
  readonly snapshotSize?: string | undefined;
}

export class LvmDriver implements DiskDriver {
  readonly name = TRAITS.name;
  readonly medium = TRAITS.medium;
  readonly takenBy = TRAITS.takenBy;
  readonly isRemovable = TRAITS.isRemovable;
  readonly #sizeArguments: readonly string[];
  readonly #run: RunTool;
  readonly #deviceOf: typeof deviceNumber;
  /** Volumes that the last `describe` found, by path of the disk. */
  readonly #volumes = new Map<string, LogicalVolume>();
  /** The UUID of each pool, by the UUID of its thin volume. */
  readonly #poolUuids = new Map<string, string>();

  /** @throws USAGE for a size that is none: not in the pause, where it would be found out otherwise */
  constructor({ snapshotSize }: LvmOptions = {}, run: RunTool = runTool, deviceOf = deviceNumber) {
    this.#sizeArguments = snapshotSizeArguments(snapshotSize ?? DEFAULT_SNAPSHOT_SIZE);
    this.#run = run;
    this.#deviceOf = deviceOf;
  }

  /**
   * Returns the same disks, with what lvm2 can do for block devices among them. Runs lvm2 only when there is
   * one.
   */
  async describe(disks: readonly VmDisk[]): Promise<readonly VmDisk[]> {
    const candidates = new Map<string, string>();
    for (const { path, writable, snapshotModes } of disks) {
      const device = writable && snapshotModes.length === 0 ? await this.#deviceOf(path) : '';
      if (device !== '') candidates.set(path, device);
    }
    this.#volumes.clear();
    if (candidates.size === 0) return disks;
    const list = await listVolumes(this.#run);
    return disks.map((disk) => {
      const device = candidates.get(disk.path);
      if (device === undefined) return disk;
      if ('whyNot' in list) return { ...disk, whyNoSnapshot: list.whyNot };
      const volume = list.volumes.find((candidate) => candidate.device === device);
      if (volume === undefined) return { ...disk, whyNoSnapshot: 'it is no logical volume of lvm2' };
      const whyNoSnapshot = obstacle(volume);
      if (whyNoSnapshot !== '') return { ...disk, whyNoSnapshot };
      this.#volumes.set(disk.path, volume);
      const pool = list.volumes.find(({ vgName, name }) => vgName === volume.vgName && name === volume.pool);
      if (pool !== undefined) this.#poolUuids.set(volume.uuid, pool.uuid);
      return { ...disk, snapshotModes: [LVM] };
    });
  }

  /** What `snapshot` would take. @param disks of the last `describe` */
  plan(name: string, disks: readonly VmDisk[]): readonly DiskSnapshot[] {
    return disks.flatMap((disk) => {
      const volume = this.#volumes.get(disk.path);
      return volume === undefined ? [] : [volumeRecord(planned(name, disk, volume))];
    });
  }

  /**
   * Snapshots of all, or none. The VM stands still.
   * @param disks of the last `describe`
   * @throws DISK_SNAPSHOT_FAILED with nothing left behind and nothing suspended, unless
   *   `detail.possiblyPresent` or the text say so
   */
  async snapshot(name: string, disks: readonly VmDisk[]): Promise<readonly DiskSnapshot[]> {
    const taken: VolumeSnapshot[] = [];
    for (const disk of disks) {
      const volume = this.#volumes.get(disk.path);
      if (volume === undefined) throw failed(`${disk.path} is not known as a logical volume`, []);
      const snapshot = planned(name, disk, volume);
      const create = createArguments(snapshot, volume, this.#sizeArguments);
      const result = await this.#run('lvm', create, SNAPSHOT_LIMIT_MS);
      taken.push(snapshot);
      if (result.kind === 'done') continue;
      const left = result.kind === 'late' ? await this.#afterKill(volume) : [];
      // One that was refused is not there; one that took too long may be.
      const present = result.kind === 'late' ? taken : taken.slice(0, -1);
      const why = [`${volume.vgName}/${volume.name}: ${failureOf('lvm lvcreate', result)}`, ...left].join(
        '; ',
      );
      throw failed(why, await this.#remove(present));
    }
    return taken.map(volumeRecord);
  }

  /** @throws DISK_SNAPSHOT_FAILED naming what stays behind */
  async drop(snapshots: readonly DiskSnapshot[]): Promise<void> {
    const left = await this.#remove(snapshots.map(volumeSnapshot));
    if (left.length > 0) throw failed('snapshots cannot be removed', left);
  }

  remedy(record: DiskSnapshot): string {
    const { volume, snapshotName } = volumeSnapshot(record);
    return `lvremove ${quoted(`${volume.vgName}/${snapshotName}`)}`;
  }

  async check(snapshots: readonly DiskSnapshot[]): Promise<void> {
    await checkVolumes(snapshots.map(volumeSnapshot), this.#run);
  }

  /**
   * A thin volume gets another snapshot, which takes no room at first. A snapshot of a thick one would need room for all
   * that is overwritten: it has no way back.
   */
  async keep(
    name: string,
    snapshots: readonly DiskSnapshot[],
  ): Promise<readonly (DiskSnapshot | undefined)[]> {
    const kept: (VolumeSnapshot | undefined)[] = [];
    for (const { disk, origin } of await pairsOf(snapshots.map(volumeSnapshot), this.#run)) {
      const before = { ...disk, snapshotName: snapshotNameOf(origin, name) };
      if (origin.kind !== 'thin' || !isVolumeName(before.snapshotName)) {
        kept.push(undefined);
        continue;
      }
      const result = await this.#run('lvm', createArguments(before, origin, []), SNAPSHOT_LIMIT_MS);
      kept.push(before);
      if (result.kind === 'done') continue;
      const why = failureOf('lvm lvcreate', result);
      const left = await this.#remove(kept.filter((one) => one !== undefined));
      const stays = left.length === 0 ? '' : `; left behind: ${left.join(', ')}`;
      throw diskLost(
        `keeping what ${origin.vgName}/${origin.name} is before it is put back: ${why}${stays}`,
        'nothing was touched: is there room in its pool (lvs)?',
      );
    }
    return kept.map((one) => (one === undefined ? undefined : volumeRecord(one)));
  }

  async rollBack(snapshots: readonly DiskSnapshot[]): Promise<void> {
    await writeBackVolumes(snapshots.map(volumeSnapshot), this.#run);
  }

  async #afterKill(volume: LogicalVolume): Promise<readonly string[]> {
    const uuids = [volume.uuid, this.#poolUuids.get(volume.uuid) ?? ''];
    const left = await resumeSuspended(uuids, this.#run);
    return left.map((text) => `STILL SUSPENDED, resume it with dmsetup: ${text}`);
  }

  /** @returns what stays behind */
  async #remove(snapshots: readonly VolumeSnapshot[]): Promise<readonly string[]> {
    const left: string[] = [];
    for (const { volume, snapshotName } of snapshots) {
      const target = `${volume.vgName}/${snapshotName}`;
      const result = await this.#run('lvm', ['lvremove', '--yes', '--quiet', target], REMOVE_LIMIT_MS);
      const isAbsent = result.kind === 'failed' && /failed to find logical volume/i.test(result.text);
      if (result.kind !== 'done' && !isAbsent) left.push(`${target} (${failureOf('lvm lvremove', result)})`);
    }
    return left;
  }
}

/** @throws USAGE */
export function snapshotSizeArguments(size: string): readonly string[] {
  if (SIZE.test(size)) return ['--size', size];
  if (EXTENTS.test(size)) return ['--extents', size];
  throw new CheckpointError('USAGE', `"${size}" is no size of a snapshot`, {
    hint: 'for example 10G, or 20%ORIGIN, 50%FREE, 5%VG, as lvcreate has it',
  });
}

function obstacle(volume: LogicalVolume): string {
  if (volume.isShared) return 'its volume group is shared with other hosts';
  if (!KINDS.includes(volume.kind)) return `snapshots of a volume of kind ${volume.kind} were not tested`;
  if (volume.origin !== '' && volume.kind !== 'thin') return 'it is a snapshot itself';
  if (!isVolumeName(volume.vgName) || !isVolumeName(volume.name)) return 'its name is none of lvm2';
  return isVolumeName(snapshotNameOf(volume, '0'.repeat(16)))
    ? ''
    : 'its name is too long for that of a snapshot';
}

function snapshotNameOf({ name }: LogicalVolume, checkpoint: string): string {
  return `${name}-cairn-${checkpoint}`;
}

function planned(name: string, disk: VmDisk, volume: LogicalVolume): VolumeSnapshot {
  return {
    diskId: disk.id,
    path: disk.path,
    snapshotName: snapshotNameOf(volume, name),
    volume: { vgName: volume.vgName, name: volume.name, uuid: volume.uuid },
  };
}

function createArguments(
  snapshot: VolumeSnapshot,
  volume: LogicalVolume,
  sizeArguments: readonly string[],
): readonly string[] {
  return [
    ...['lvcreate', '--yes', '--quiet', '--snapshot', '--permission', 'r', '--addtag', 'cairn'],
    ...(volume.kind === 'thin' ? [] : sizeArguments),
    ...['--name', snapshot.snapshotName, `${volume.vgName}/${volume.name}`],
  ];
}

function failed(why: string, possiblyPresent: readonly string[]): CheckpointError {
  return snapshotFailed('lvm2', why, possiblyPresent, 'lvs shows what is there, lvremove removes it');
}
