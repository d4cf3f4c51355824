import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { randomBytes } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { CopyDriver } from '../../adapters/disks/copy/copy-driver.js';
import { DISK_DRIVERS, DiskDrivers } from '../../adapters/disks/disk-drivers.js';
import { AUTO_DISK_MODE, planDisks } from '../../src/disks/disk-plan.js';
import { diskEntry, readDiskEntry } from '../../src/format/disk-entry.js';
import type { DiskSnapshot, VmDisk } from '../../src/hypervisor/disks.js';
import { JsonFields } from '../../src/records/json-fields.js';
import type { JsonObject } from '../../src/types.js';

const SIZE = 528 << 10;

let dir: string;
let path: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-copy-'));
  path = join(dir, 'VARS.fd');
  writeFileSync(path, Buffer.alloc(SIZE, 0xff), { mode: 0o640 });
});
afterEach(() => rmSync(dir, { recursive: true }));

const disk = (change: Partial<VmDisk> = {}): VmDisk => ({
  ...{ id: 'pflash1', path, format: 'raw', writable: true, virtualSizeBytes: SIZE, snapshotModes: [] },
  ...change,
});

/** As it comes back out of a manifest. */
function readBack(snapshot: DiskSnapshot): DiskSnapshot {
  const fields = new JsonFields('a manifest', JSON.parse(JSON.stringify(diskEntry(snapshot))) as JsonObject);
  return readDiskEntry(fields, ['copy-snapshot']);
}

async function taken(driver: CopyDriver, one = disk()): Promise<DiskSnapshot> {
  const described = await driver.describe([one]);
  const [snapshot] = await driver.snapshot('c1', described);
  return readBack(snapshot!);
}

describe('a small raw file that a VM writes to', () => {
  it('is what it was in the pause, not before it, and is put back into the same file', async () => {
    const driver = new CopyDriver({ cwd: '/' });
    const described = await driver.describe([disk()]);
    const then = Buffer.alloc(SIZE, 0xff).fill('in the pause', 4096, 8192);
    writeFileSync(path, then);
    const [snapshot] = await driver.snapshot('c1', described);
    writeFileSync(path, randomBytes(SIZE));
    const { ino } = statSync(path);
    await driver.check([readBack(snapshot!)]);
    await driver.rollBack([readBack(snapshot!)]);
    expect(readFileSync(path).equals(then)).toBe(true);
    expect(statSync(path)).toMatchObject({ ino, mode: 0o100640 });
  });

  it('is found by a path that begins in the folder of the VM, and through a link', async () => {
    symlinkSync('VARS.fd', join(dir, 'link.fd'));
    const snapshot = await taken(new CopyDriver({ cwd: dir }), disk({ path: 'link.fd' }));
    expect(snapshot).toMatchObject({ path: 'link.fd', data: { filePath: join(dir, 'link.fd') } });
  });

  it.each<[string, Partial<VmDisk>]>([
    ['is read-only', { writable: false }],
    ['is a qcow2 image', { format: 'qcow2' }],
    ['is a device', { path: '/dev/null' }],
    ['is not there', { path: '/nowhere/VARS.fd' }],
    ['is on the network', { path: 'nbd://host/export' }],
  ])('is left to others when it %s', async (_, change) => {
    const driver = new CopyDriver({ cwd: '/' });
    expect(await driver.describe([disk(change)])).toEqual([disk(change)]);
  });

  it('is left to others when it is a whole disk', async () => {
    truncateSync(path, (8 << 20) + 1);
    expect(await new CopyDriver({ cwd: '/' }).describe([disk()])).toEqual([disk()]);
  });

  it('is refused with the reason when a manifest could not hold it', async () => {
    writeFileSync(path, randomBytes(600 << 10));
    const [described] = await new CopyDriver({ cwd: '/' }).describe([disk()]);
    expect(described).toMatchObject({
      snapshotModes: [],
      whyNoSnapshot: expect.stringMatching(/600 KiB compressed.*512 KiB at most.*readonly=on/),
    });
  });

  it('that has grown past that by the pause fails the checkpoint', async () => {
    const driver = new CopyDriver({ cwd: '/' });
    const described = await driver.describe([disk()]);
    writeFileSync(path, randomBytes(600 << 10));
    await expect(driver.snapshot('c1', described)).rejects.toMatchObject({ code: 'DISK_SNAPSHOT_FAILED' });
  });

  it('needs a file of the same size to be put back', async () => {
    const driver = new CopyDriver({ cwd: '/' });
    const snapshot = await taken(driver);
    truncateSync(path, 17);
    await expect(driver.check([snapshot])).rejects.toMatchObject({
      code: 'RESTORE_FAILED',
      message: expect.stringContaining(`has 17 bytes instead of ${SIZE}`),
      hint: expect.stringContaining(`truncate -s ${SIZE}`),
    });
    rmSync(path);
    await expect(driver.check([snapshot])).rejects.toThrow('is gone');
  });

  it('is kept as it is until a restore is over, in memory and beside it', async () => {
    const drivers = new DiskDrivers({ cwd: '/' }, [...DISK_DRIVERS]);
    const snapshot = await taken(new CopyDriver({ cwd: '/' }));
    const before = randomBytes(SIZE);
    writeFileSync(path, before);
    const rolledBack = await drivers.rollBack([snapshot]);
    expect(readFileSync(path).equals(before)).toBe(false);
    const [beside] = readdirSync(dir).filter((name) => name.includes('.cairn-before-'));
    expect(readFileSync(join(dir, beside!)).equals(before)).toBe(true);
    expect(await rolledBack.putBack()).toBe('');
    expect(readFileSync(path).equals(before)).toBe(true);
    expect(readdirSync(dir)).toEqual(['VARS.fd']);
  });

  it('is damaged when its bytes are not those that were copied', async () => {
    const snapshot = await taken(new CopyDriver({ cwd: '/' }));
    const broken = { ...snapshot, data: { ...snapshot.data, sha256: '0'.repeat(64) } };
    await expect(new CopyDriver({ cwd: '/' }).rollBack([broken])).rejects.toMatchObject({
      code: 'REPO_DAMAGED',
    });
  });

  it('is copied by itself, beside a hook and whatever driver takes the other disks', async () => {
    const drivers = new DiskDrivers({ cwd: '/' });
    const disks = await drivers.describe([disk()]);
    const image = disk({ id: 'd0', format: 'qcow2', snapshotModes: ['internal', 'external'] });
    for (const mode of [AUTO_DISK_MODE, 'external', 'internal']) {
      const plan = planDisks([...disks, image], drivers.drivers, {
        ...{ memoryOnly: false, mode, hookCoversDisks: mode === 'internal' },
      });
      expect(plan.map(({ driver, disks: own }) => [driver, own[0]!.id])).toEqual(
        expect.arrayContaining([['copy', 'pflash1']]),
      );
    }
  });
});
