/** What every disk driver keeps to, whatever its storage. What one cannot do is declared by its traits, and its refusal is tested. */

import { beforeEach, describe, expect, it } from '@jest/globals';

import type { DiskDriverKind } from '../../adapters/disks/disk-means.js';
import { diskEntry, readDiskEntry } from '../../src/format/disk-entry.js';
import type { DiskDriver } from '../../src/hypervisor/disk-driver.js';
import type { DiskSnapshot, VmDisk } from '../../src/hypervisor/disks.js';
import { JsonFields } from '../../src/records/json-fields.js';
import type { JsonObject } from '../../src/types.js';

export interface DiskDriverUnderTest {
  readonly driver: DiskDriver;
  /** At least two disks of its kind, as a hypervisor lists them. */
  readonly disks: readonly VmDisk[];
  /** Snapshots that are there now, by any names. */
  snapshots(): readonly string[];
  /** From now on the last of the disks cannot be snapshotted. */
  refuseLast(): void;
  /** Whether it keeps what a disk is before it is put back: tried here, or on the real storage alone. */
  readonly wayBack: 'here' | 'lab' | 'none';
  /** Files that a restore of the first disk needs as they are, when it was snapshotted as `c1`. Default: none. */
  readonly neededFiles?: readonly string[];
}

const KEY = 'vms/web/checkpoints/00000001-0123456789abcdef';

export function describeDiskDriver(kind: DiskDriverKind, open: () => DiskDriverUnderTest): void {
  describe(`disk driver contract: ${kind.name}`, () => {
    let subject: DiskDriverUnderTest;
    let driver: DiskDriver;
    let disks: readonly VmDisk[];
    beforeEach(async () => {
      subject = open();
      driver = subject.driver;
      disks = await driver.describe(subject.disks);
    });

    /** Snapshots of all disks; what a manifest holds is nowhere else. */
    const onStorage = (): number => (driver.takenBy === 'manifest' ? 0 : disks.length);

    it('is what its registration says', () => {
      expect(driver.name).toMatch(/^[a-z0-9][a-z0-9-]{0,30}$/);
      const { name, medium, takenBy, autoLimitBytes, isRemovable } = driver;
      expect({ ...kind, settings: undefined, open: undefined }).toEqual({
        ...{ name, medium, takenBy, autoLimitBytes, isRemovable },
        ...{ settings: undefined, open: undefined },
      });
    });

    it('offers itself for the disks of its kind, and leaves all others as they are', async () => {
      expect(disks.map(({ id }) => id)).toEqual(subject.disks.map(({ id }) => id));
      for (const { snapshotModes } of disks) expect(snapshotModes).toContain(driver.name);
      const others = [
        { ...subject.disks[0]!, id: 'cd', writable: false, snapshotModes: [] },
        { ...subject.disks[0]!, id: 'other', path: '/srv/other.vmdk', format: 'vmdk', snapshotModes: [] },
      ];
      expect(await driver.describe(others)).toEqual(others);
    });

    it('takes what it has planned, of all disks', async () => {
      const plan = driver.plan('c1', disks);
      const taken = await driver.snapshot('c1', disks);
      expect(taken.map(({ diskId }) => diskId)).toEqual(disks.map(({ id }) => id));
      taken.forEach((snapshot, i) => {
        // What is only known once it is taken comes on top.
        expect(snapshot).toMatchObject(JSON.parse(JSON.stringify(plan[i])) as object);
        expect(snapshot.driver).toBe(driver.name);
      });
      expect(subject.snapshots()).toHaveLength(onStorage());
    });

    it('takes none when one is refused', async () => {
      subject.refuseLast();
      await expect(driver.snapshot('c1', disks)).rejects.toMatchObject({ code: 'DISK_SNAPSHOT_FAILED' });
      expect(subject.snapshots()).toEqual([]);
    });

    it('knows its snapshots again from a manifest', async () => {
      const taken = await driver.snapshot('c1', disks);
      const read = taken.map(readBack);
      expect(read.map(diskEntry)).toEqual(taken.map(diskEntry));
      for (const snapshot of read) expect(driver.remedy(snapshot)).not.toBe('');
      if (driver.isRemovable) {
        await driver.drop(read);
        expect(subject.snapshots()).toEqual([]);
      } else {
        await expect(driver.drop(read)).rejects.toMatchObject({ code: 'DISK_SNAPSHOT_FAILED' });
        expect(subject.snapshots()).toHaveLength(disks.length);
      }
    });

    it('either puts a disk back in place, or has a stand-in for an image that must stay as it is', async () => {
      const [snapshot] = await driver.snapshot('c1', disks);
      const standIn = driver.standIn?.(snapshot!, 'c1');
      const needs = driver.needs?.(snapshot!) ?? [];
      if (standIn === undefined) expect(needs).toEqual(subject.neededFiles ?? []);
      else expect(needs).toContain(standIn.path);
      if (standIn !== undefined) expect(driver.overwrites?.(snapshot!)).toBeUndefined();
    });

    it('keeps what a disk is before it is put back by a snapshot of its own, or has no way back', async () => {
      expect(driver.keep !== undefined).toBe(subject.wayBack !== 'none');
      if (subject.wayBack !== 'here') return;
      const taken = await driver.snapshot('c1', disks);
      const before = subject.snapshots();
      const kept = await driver.keep!('before-01234567', taken);
      expect(kept.map((one) => one?.diskId)).toEqual(disks.map(({ id }) => id));
      expect(subject.snapshots()).toHaveLength(before.length + disks.length);
      await driver.rollBack(kept.map((one) => readBack(one!)));
      await driver.drop(kept.map((one) => one!));
      expect(subject.snapshots()).toEqual(before);
    });

    it('says which manifest is damaged', async () => {
      const [snapshot] = await driver.snapshot('c1', disks);
      const damage = { code: 'REPO_DAMAGED', message: expect.stringContaining(KEY) };
      for (const data of [{}, ...brokenOf(snapshot!.data)]) {
        const broken = readBack({ ...snapshot!, data });
        expect(() => driver.remedy(broken)).toThrow(expect.objectContaining(damage));
        await expect(driver.check([broken])).rejects.toMatchObject(damage);
        await expect(driver.drop([broken])).rejects.toMatchObject(damage);
      }
    });
  });
}

/** The snapshot as it comes back out of a manifest. */
function readBack(snapshot: DiskSnapshot): DiskSnapshot {
  const entry = JSON.parse(JSON.stringify(diskEntry(snapshot))) as JsonObject;
  return readDiskEntry(new JsonFields(KEY, entry), snapshot.feature === undefined ? [] : [snapshot.feature]);
}

/** The same with a wrong value in each field that says something. */
function brokenOf(data: JsonObject): readonly JsonObject[] {
  return Object.entries(data).flatMap(([name, value]) => (value === '' ? [] : [{ ...data, [name]: 17 }]));
}
