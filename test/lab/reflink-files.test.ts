/** The driver of clones on real btrfs and XFS, on loop devices, with this process in the place of a VM. */

import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  chownSync,
  closeSync,
  fsyncSync,
  linkSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';

import { ReflinkDriver, reflinkDriver } from '../../adapters/disks/reflink/reflink-driver.js';
import type { DiskSnapshot, VmDisk } from '../../src/hypervisor/disks.js';
import { describeDiskDriver } from '../contract/disk-driver.js';
import { scratchDir } from './support/lab-files.js';
import { ensureFileSystemTools, LoopMount, whyNoLoopMounts } from './support/loop-mount.js';

const reason = whyNoLoopMounts();
if (reason === '') ensureFileSystemTools();
else process.stderr.write(`test/lab/reflink-files.test.ts is skipped: ${reason}\n`);

const IMAGE_BYTES = 4 << 20;

(reason === '' ? describe : describe.skip).each(['btrfs', 'xfs'] as const)('clones on %s', (fileSystem) => {
  let dir = '';
  let mount: LoopMount;
  const open: number[] = [];
  beforeAll(() => {
    dir = scratchDir('clones');
    mount = LoopMount.make(fileSystem, dir, 512);
  });
  afterEach(() => {
    letGo();
    for (const name of readdirSync(mount.path)) rmSync(join(mount.path, name), { recursive: true });
  });
  afterAll(() => {
    mount.unmount();
    rmSync(dir, { recursive: true });
  });

  const at = (name: string): string => join(mount.path, name);
  const names = (): readonly string[] => readdirSync(mount.path).sort();

  function letGo(): void {
    for (const descriptor of open.splice(0)) closeSync(descriptor);
  }

  /** What a VM does with its disk. @returns its descriptor */
  function hold(path: string): number {
    const descriptor = openSync(path, 'r+');
    open.push(descriptor);
    return descriptor;
  }

  function disk(name: string, format = 'raw', backingPaths: readonly string[] = []): VmDisk {
    const path = at(name);
    return {
      id: name,
      path,
      format,
      writable: true,
      virtualSizeBytes: IMAGE_BYTES,
      snapshotModes: [],
      backingPaths,
    };
  }

  function driver(pauseSeconds?: string, limitMs?: number): ReflinkDriver {
    const settings = pauseSeconds === undefined ? {} : { options: { reflink: { pauseSeconds } } };
    return new ReflinkDriver({ cwd: '/', ...settings }, limitMs);
  }

  async function snapshot(
    reflink: ReflinkDriver,
    name: string,
    ...disks: readonly VmDisk[]
  ): Promise<readonly DiskSnapshot[]> {
    const described = await reflink.describe(disks);
    expect(described.map(({ snapshotModes }) => snapshotModes)).toEqual(disks.map(() => ['reflink']));
    reflink.plan(name, described);
    await reflink.checkStorage();
    const taken = await reflink.snapshot(name, described);
    await reflink.makeDurable(taken);
    return taken;
  }

  /** An image in so many pieces. */
  function scatter(path: string, pieces: number): void {
    writeFileSync(path, '');
    const descriptor = openSync(path, 'r+');
    for (let i = 0; i < pieces; i++) {
      // Neighbours on the disk are far apart in the file.
      const block = (i * 7919) % pieces;
      writeSync(descriptor, randomBytes(4096), 0, 4096, block * 8192);
    }
    fsyncSync(descriptor);
    closeSync(descriptor);
  }

  describeDiskDriver(reflinkDriver, () => {
    const images = ['a.img', 'b.img'];
    for (const name of images) {
      writeFileSync(at(name), randomBytes(IMAGE_BYTES));
      hold(at(name));
    }
    return {
      driver: driver(),
      disks: images.map((name) => disk(name)),
      snapshots: () => names().filter((name) => name.includes('.cairn-')),
      // The VM writes to another file by then.
      refuseLast: () => closeSync(open.pop()!),
      wayBack: 'here',
      neededFiles: [at('a.img.cairn-c1')],
    };
  });

  it('hold what was written, and bring it back into the same file', async () => {
    const then = randomBytes(IMAGE_BYTES);
    writeFileSync(at('a.img'), then, { mode: 0o640 });
    chownSync(at('a.img'), 64055, 12);
    linkSync(at('a.img'), at('a.link'));
    const descriptor = hold(at('a.img'));
    // In the page cache alone.
    writeSync(descriptor, then.subarray(0, 8192), 0, 8192, 65536);
    then.copy(then, 65536, 0, 8192);
    const reflink = driver();
    const taken = await snapshot(reflink, 'c1', disk('a.img'));
    expect(readFileSync(at('a.img.cairn-c1')).equals(then)).toBe(true);
    expect(statSync(at('a.img.cairn-c1'))).toMatchObject({ uid: 64055, gid: 12, mode: 0o100600 });

    writeSync(descriptor, randomBytes(1 << 20), 0, 1 << 20, IMAGE_BYTES - 4096);
    await snapshot(reflink, 'c2', disk('a.img'));
    const { ino } = statSync(at('a.img'));
    await expect(reflink.check(taken)).rejects.toMatchObject({ code: 'RESTORE_TARGET_BUSY' });
    letGo();
    await reflink.check(taken);
    await reflink.rollBack(taken);
    expect(readFileSync(at('a.link')).equals(then)).toBe(true);
    expect(statSync(at('a.img'))).toMatchObject({ ino, uid: 64055, gid: 12, mode: 0o100640 });
    expect(names()).toEqual(['a.img', 'a.img.cairn-c1', 'a.img.cairn-c2', 'a.link']);
    await reflink.drop(taken);
    expect(names()).not.toContain('a.img.cairn-c1');
    await expect(reflink.check(taken)).rejects.toMatchObject({ code: 'RESTORE_FAILED' });
  });

  it('are taken of all images or of none, and over no other file', async () => {
    for (const name of ['a.img', 'b.img']) {
      writeFileSync(at(name), name);
      hold(at(name));
    }
    writeFileSync(at('b.img.cairn-c1'), 'precious');
    await expect(snapshot(driver(), 'c1', disk('a.img'), disk('b.img'))).rejects.toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
      message: expect.stringContaining('b.img.cairn-c1: exists already'),
      detail: { possiblyPresent: [] },
    });
    expect(names()).toEqual(['a.img', 'b.img', 'b.img.cairn-c1']);
    expect(readFileSync(at('b.img.cairn-c1'), 'utf8')).toBe('precious');
  });

  it('are refused before the pause for an image in too many pieces', async () => {
    scatter(at('a.img'), 2000);
    hold(at('a.img'));
    const [described] = await driver('0.01').describe([disk('a.img')]);
    expect(described).toMatchObject({
      snapshotModes: [],
      whyNoSnapshot: expect.stringMatching(/in \d{3,} pieces/),
    });
    await snapshot(driver('30'), 'c1', disk('a.img'));
  });

  it('leave nothing behind when they take too long', async () => {
    scatter(at('a.img'), 4000);
    hold(at('a.img'));
    const reflink = driver('30', 1);
    await expect(snapshot(reflink, 'c1', disk('a.img'))).rejects.toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
      detail: { possiblyPresent: [] },
    });
    await sleep(500);
    expect(names()).toEqual(['a.img']);
  });

  it('are refused for a file that nobody writes to, and when the VM has let go of it', async () => {
    writeFileSync(at('a.img'), 'x');
    const [closed] = await driver().describe([disk('a.img')]);
    expect(closed?.whyNoSnapshot).toContain('nobody has that file open for writing');
    hold(at('a.img'));
    const reflink = driver();
    const described = await reflink.describe([disk('a.img')]);
    letGo();
    await expect(reflink.snapshot('c1', described)).rejects.toMatchObject({ code: 'DISK_SNAPSHOT_FAILED' });
    expect(names()).toEqual(['a.img']);
  });

  it('need the images below a qcow2 image as they were', async () => {
    const create = (...args: string[]): unknown =>
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', ...args]);
    create(at('base.qcow2'), '4M');
    create('-b', at('base.qcow2'), '-F', 'qcow2', at('top.qcow2'));
    hold(at('top.qcow2'));
    const reflink = driver();
    const taken = await snapshot(reflink, 'c1', disk('top.qcow2', 'qcow2', [at('base.qcow2')]));
    letGo();
    expect(reflink.needs(taken[0]!)).toEqual([at('top.qcow2.cairn-c1'), at('base.qcow2')]);
    await reflink.check(taken);
    execFileSync('qemu-img', ['snapshot', '-c', 'later', at('top.qcow2')]);
    await expect(reflink.check(taken)).rejects.toMatchObject({
      code: 'DISK_CHANGED',
      detail: { snapshots: ['later'] },
    });
    execFileSync('qemu-img', ['snapshot', '-d', 'later', at('top.qcow2')]);
    writeFileSync(at('base.qcow2'), 'x', { flag: 'a' });
    await expect(reflink.check(taken)).rejects.toMatchObject({ code: 'DISK_CHANGED' });
  });

  it('are refused for a qcow2 image whose data lies elsewhere', async () => {
    const options = `data_file=${at('data.raw')}`;
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', options, at('a.qcow2'), '4M']);
    hold(at('a.qcow2'));
    const [described] = await driver().describe([disk('a.qcow2', 'qcow2')]);
    expect(described?.whyNoSnapshot).toBe('its data lies in another file');
  });

  if (fileSystem === 'btrfs') {
    it('are taken of images without copy-on-write, and of others in a folder without', async () => {
      writeFileSync(at('plain.img'), '');
      execFileSync('mkdir', [at('pool')]);
      execFileSync('chattr', ['+C', at('plain.img'), at('pool')]);
      writeFileSync(at('plain.img'), randomBytes(IMAGE_BYTES), { flag: 'r+' });
      writeFileSync(at('moved.img'), randomBytes(IMAGE_BYTES));
      execFileSync('mv', [at('moved.img'), at('pool/moved.img')]);
      for (const name of ['plain.img', 'pool/moved.img']) hold(at(name));
      const taken = await snapshot(driver(), 'c1', disk('plain.img'), disk('pool/moved.img'));
      expect(taken).toHaveLength(2);
      for (const name of ['plain.img', 'pool/moved.img'])
        expect(readFileSync(at(`${name}.cairn-c1`)).equals(readFileSync(at(name)))).toBe(true);
    });
  }
});
