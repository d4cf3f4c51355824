import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { giveName, isOpenForWriting, openUnnamed, REQUEST } from '../../adapters/disks/reflink/file-calls.js';
import { ReflinkDriver } from '../../adapters/disks/reflink/reflink-driver.js';
import {
  cloneRecord,
  cloneSnapshot,
  type CloneSnapshot,
} from '../../adapters/disks/reflink/reflink-record.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';

let dir = '';
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-reflink-'));
});
afterEach(() => rmSync(dir, { recursive: true }));

function snapshot(imagePath: string, ending = '.cairn-c1'): CloneSnapshot {
  return { diskId: 'd0', path: imagePath, imagePath, format: 'raw', clonePath: `${imagePath}${ending}` };
}

/** asm-generic/ioctl.h: two bits of direction, 14 of size, 8 of type, 8 of number. */
function requestNumber(
  direction: 'read' | 'write' | 'both',
  type: number,
  number: number,
  sizeBytes: number,
): bigint {
  const bits = { write: 1n, read: 2n, both: 3n }[direction];
  return (bits << 30n) | (BigInt(sizeBytes) << 16n) | (BigInt(type) << 8n) | BigInt(number);
}

describe('calls on files', () => {
  it('have the numbers of linux/fs.h', () => {
    const f = 'f'.charCodeAt(0);
    expect(REQUEST).toEqual({
      ficlone: requestNumber('write', 0x94, 9, 4),
      getFlags: requestNumber('read', f, 1, 8),
      setFlags: requestNumber('write', f, 2, 8),
      fiemap: requestNumber('both', f, 11, 32),
    });
  });

  it('tell whether a file is open for writing, and leave no lease behind', async () => {
    const path = join(dir, 'image');
    writeFileSync(path, 'x');
    const looking = await open(path, 'r');
    const reader = await open(path, 'r');
    expect(isOpenForWriting(looking)).toBe(false);
    const writer = await open(path, 'r+');
    expect(isOpenForWriting(looking)).toBe(true);
    await writer.close();
    expect(isOpenForWriting(looking)).toBe(false);
    for (const file of [looking, reader]) await file.close();
  });

  it('give a name to a file that has none, and never that of another', async () => {
    const file = await openUnnamed(dir);
    await file.write('new');
    writeFileSync(join(dir, 'old'), 'old');
    await expect(giveName(file, join(dir, 'old'))).rejects.toMatchObject({ code: 'EEXIST' });
    await giveName(file, join(dir, 'new'));
    await file.close();
    expect(readFileSync(join(dir, 'old'), 'utf8')).toBe('old');
    expect(readFileSync(join(dir, 'new'), 'utf8')).toBe('new');
    expect(statSync(join(dir, 'new')).mode & 0o777).toBe(0o600);
  });
});

describe('the driver of clones', () => {
  const driver = (): ReflinkDriver => new ReflinkDriver({ cwd: '/' });

  it.each([
    ['a device', '/dev/null', 'raw'],
    ['a disk on the network', 'nbd://host/export', 'raw'],
    ['a description of a disk', 'json:{"driver":"raw","offset":512}', 'raw'],
    ['another format', '/srv/a.vmdk', 'vmdk'],
    ['a file that is not there', '/nowhere/a.img', 'raw'],
  ])('leaves %s alone', async (_, path, format) => {
    const disk: VmDisk = { id: 'd0', path, format, writable: true, virtualSizeBytes: 1, snapshotModes: [] };
    expect(await driver().describe([disk])).toEqual([disk]);
  });

  it('says why an image in a file cannot be cloned, unless another driver takes it', async () => {
    writeFileSync(join(dir, 'a.img'), 'x');
    symlinkSync('a.img', join(dir, 'link'));
    const disk = {
      id: 'd0',
      path: 'link',
      format: 'raw',
      writable: true,
      virtualSizeBytes: 1,
      snapshotModes: [],
    };
    const other = { ...disk, id: 'd1', format: 'qcow2', snapshotModes: ['internal'] };
    const [described, same] = await new ReflinkDriver({ cwd: dir }).describe([disk, other]);
    // Nobody has it open; on another file system than btrfs and XFS that is the reason.
    expect(described).toMatchObject({
      snapshotModes: [],
      whyNoSnapshot: expect.stringMatching(/btrfs|open for writing/),
    });
    expect(same).toEqual(other);
  });

  it('removes clones, and one that is gone is no failure', async () => {
    const image = join(dir, 'a.img');
    writeFileSync(`${image}.cairn-c1`, 'x');
    await driver().drop([cloneRecord(snapshot(image)), cloneRecord(snapshot(image, '.cairn-c2'))]);
    expect(existsSync(`${image}.cairn-c1`)).toBe(false);
  });

  it('removes none that is in use, nor anything but a file', async () => {
    const image = join(dir, 'a.img');
    writeFileSync(`${image}.cairn-c1`, 'x');
    symlinkSync('/etc/passwd', `${image}.cairn-c2`);
    const user = await open(`${image}.cairn-c1`, 'r+');
    const both = [cloneRecord(snapshot(image)), cloneRecord(snapshot(image, '.cairn-c2'))];
    await expect(driver().drop(both)).rejects.toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
      message: expect.stringMatching(
        /c1 \(somebody has it open for writing\), .*c2 \(it is no regular file\)/,
      ),
    });
    await user.close();
    expect(existsSync(`${image}.cairn-c1`)).toBe(true);
  });

  it('says what removes a clone, what a restore needs, and what it overwrites', () => {
    const frozen = [{ path: '/srv/base.qcow2', sizeBytes: 5, mtimeNs: '7' }];
    const record = cloneRecord({ ...snapshot("/srv/it's.img"), frozen });
    expect(driver().remedy(record)).toBe(`rm '/srv/it'\\''s.img.cairn-c1'`);
    expect(driver().needs(record)).toEqual(["/srv/it's.img.cairn-c1", '/srv/base.qcow2']);
    expect(driver().overwrites(record)).toMatchObject({ path: "/srv/it's.img" });
  });

  it.each([
    ['clonePath', '/etc/passwd'],
    ['clonePath', '/srv/a.img.cairn-/../../etc/passwd'],
    ['imagePath', 'a.img'],
    ['format', 'vmdk'],
  ])('takes no record whose %s is %s', (field, value) => {
    const record = cloneRecord({ ...snapshot('/srv/a.img'), [field]: value });
    expect(() => cloneSnapshot(record)).toThrow(expect.objectContaining({ code: 'REPO_DAMAGED' }));
  });

  it.each(['', '-1', 'soon', '1e3'])('takes no pause of "%s" seconds', (pauseSeconds) => {
    const options = { reflink: { pauseSeconds } };
    expect(() => new ReflinkDriver({ cwd: '/', options })).toThrow(
      expect.objectContaining({ code: 'USAGE' }),
    );
  });
});
