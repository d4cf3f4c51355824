/** Disks in files on real btrfs and XFS, on loop devices. */

import { execFileSync, spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  statfsSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { FAULT_POINTS } from '../../src/checkpoint/fault-points.js';
import { LabMachine } from './machine.js';
import { CairnProcess, cairn, runCairn, type CliMessage } from './support/cairn-cli.js';
import { scratchDir } from './support/lab-files.js';
import { removeWithRepositories } from './support/left-repositories.js';
import { ensureFileSystemTools, LoopMount, whyNoLoopMounts } from './support/loop-mount.js';

/**
 * Sectors past the last one written that are looked at: what a disk that was not rolled back would have
 * there.
 */
const LOOK_AHEAD = 400;

const reason = whyNoLoopMounts();
if (reason === '') ensureFileSystemTools();
else process.stderr.write(`test/lab/reflink.test.ts is skipped: ${reason}\n`);
const describeReal = reason === '' ? describe : describe.skip;

interface Disk {
  readonly file: string;
  readonly format: 'raw' | 'qcow2';
  /** How QEMU opens it. */
  readonly how: string;
}

function driveArguments(folder: string, disks: readonly Disk[]): string[] {
  return disks.flatMap(({ file, format, how }, i) => [
    ...['-drive', `file=${join(folder, file)},if=none,id=k${i},format=${format},${how}`],
    ...['-device', `virtio-blk-pci,drive=k${i}`],
  ]);
}

/** Writes n to sector n of each disk, then to files in memory, for ever. */
function writer(count: number): string {
  const letters = ['a', 'b', 'c', 'd'].slice(0, count);
  const each = letters.map(
    (letter) =>
      `printf '%-512d' $n | dd of=/dev/vd${letter} bs=512 seek=$n conv=notrunc oflag=direct 2>/dev/null; ` +
      `echo $n >/tmp/new; mv /tmp/new /tmp/pair-${letter}`,
  );
  return `(n=0; while :; do n=$((n + 1)); ${each.join('; ')}; usleep 20000; done) </dev/null >/dev/null 2>&1 & echo $! >>/tmp/loads`;
}

/** Disk and memory are of the same instant. */
async function expectAgreement(machine: LabMachine, letter: string, atMost: number): Promise<void> {
  const pair = Number(await machine.guest(`cat /tmp/pair-${letter}`));
  // Not far past the checkpoint: between restore and stop the loop did a little more.
  expect(pair).toBeLessThan(atMost + LOOK_AHEAD / 4);
  const written = await machine.guest(
    `dd if=/dev/vd${letter} bs=512 skip=1 count=${pair} iflag=direct 2>/dev/null | tr -s ' ' '\\n' | grep -c .`,
  );
  expect(Number(written)).toBe(pair);
  // What memory knows nothing of is not on the disk either, the write under way excepted.
  const beyond = await machine.guest(
    `dd if=/dev/vd${letter} bs=512 skip=$((${pair} + 2)) count=${LOOK_AHEAD} iflag=direct 2>/dev/null | tr -d '\\0' | wc -c`,
  );
  expect(Number(beyond)).toBe(0);
}

function clonesIn(folder: string): readonly string[] {
  return readdirSync(folder).filter((name) => name.includes('.cairn-'));
}

describeReal.each(['btrfs', 'xfs'] as const)('disks in files on %s', (fileSystem) => {
  const disks: readonly Disk[] = [
    { file: 'plain.img', format: 'raw', how: 'cache=none,aio=native' },
    { file: 'cached.img', format: 'raw', how: 'cache=unsafe,discard=unmap' },
    { file: 'web.qcow2', format: 'qcow2', how: 'cache=writeback' },
  ];
  const letters = ['a', 'b', 'c'];
  let mount: LoopMount;
  let machine: LabMachine;
  let dir = '';
  let options: { dir: string };
  let repo = '';
  const ids: string[] = [];
  const pairsAfter: number[][] = [];

  const take = (...more: string[]): string[] => [
    ...['checkpoint', machine.address, '--repo', repo, '--disks', 'reflink', ...more],
  ];
  const refusal = async (id: string): Promise<CliMessage> => {
    const { exitCode, messages } = await runCairn(['restore', id, '--repo', repo], options);
    expect(exitCode).not.toBe(0);
    return messages.at(-1)!;
  };

  beforeAll(async () => {
    dir = scratchDir('reflink');
    mount = LoopMount.make(fileSystem, dir);
    for (const { file, format } of disks) {
      const path = join(mount.path, file);
      // As libvirt makes its pools.
      if (fileSystem === 'btrfs' && file === 'plain.img') {
        writeFileSync(path, '');
        execFileSync('chattr', ['+C', path]);
        truncateSync(path, 128 << 20);
      } else execFileSync('qemu-img', ['create', '-q', '-f', format, path, '128M']);
    }
    machine = await LabMachine.start({
      name: 'reflink',
      dir,
      memoryMib: 104,
      devices: [],
      extraArgs: driveArguments(mount.path, disks),
    });
    options = { dir };
    repo = join(dir, 'repo');
    await cairn(['init', '--repo', repo], options);
    await machine.guest(writer(disks.length));
  });
  afterAll(async () => {
    await machine.kill();
    mount.unmount();
    removeWithRepositories(dir);
  });

  it('are offered for clones, the qcow2 image besides what QEMU does', async () => {
    const { disks: found } = await cairn(['doctor', machine.address], options);
    const modes = (found as { snapshot_modes: string[] }[]).map(({ snapshot_modes }) => snapshot_modes);
    expect(modes).toEqual([['reflink'], ['reflink'], ['internal', 'external', 'reflink']]);
  });

  it('are cloned together, beside their images', async () => {
    for (let i = 0; i < 3; i++) {
      await machine.waitForProgress();
      const summary = await cairn(take(), options);
      expect(summary).toMatchObject({ disk_snapshots: 3 });
      ids.push(String(summary.checkpoint_id));
      const pairs: number[] = [];
      for (const letter of letters) pairs.push(Number(await machine.guest(`cat /tmp/pair-${letter}`)));
      pairsAfter.push(pairs);
    }
    expect(new Set(clonesIn(mount.path))).toEqual(
      new Set(disks.flatMap(({ file }) => ids.map((id) => `${file}.cairn-${id}`))),
    );
  });

  it('lose the clones of a Cairn that was killed in the pause with the next checkpoint', async () => {
    const before = clonesIn(mount.path);
    const killed = new CairnProcess(take(), {
      ...options,
      env: { CAIRN_FAULT_POINT: String(FAULT_POINTS.beforeResume) },
    });
    expect((await killed.ended).signal).toBe('SIGKILL');
    const orphaned = clonesIn(mount.path).filter((name) => !before.includes(name));
    expect(orphaned).toHaveLength(3);
    await machine.waitForProgress();
    const { checkpoint_id: id } = await cairn(take(), options);
    const now = clonesIn(mount.path);
    expect(now.filter((name) => orphaned.includes(name))).toEqual([]);
    expect(now.filter((name) => !before.includes(name))).toHaveLength(3);
    await cairn(['forget', String(id), '--repo', repo, '--with-disks'], options);
    expect(clonesIn(mount.path)).toEqual(before);
  });

  it('get no clone, and the guest runs on, when the file system is full', async () => {
    await machine.guest('lab stop');
    const before = clonesIn(mount.path);
    const filler = join(mount.path, 'filler');
    execFileSync('fallocate', ['-l', String(freeBytes(mount.path) - (32 << 20)), filler]);
    const { messages } = await runCairn(take(), options);
    expect(messages.at(-1)).toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
      message: expect.stringContaining('its file system is full'),
    });
    await rm(filler);
    expect(clonesIn(mount.path)).toEqual(before);
    await machine.waitForProgress();
  });

  it('are not touched while somebody has one open', async () => {
    expect((await refusal(ids[0]!)).code).toBe('RESTORE_TARGET_BUSY');
    await machine.kill();
    const held = openSync(join(mount.path, 'cached.img'), 'r+');
    expect((await refusal(ids[0]!)).code).toBe('RESTORE_TARGET_BUSY');
    closeSync(held);
    const loop = execFileSync('losetup', ['--find', '--show', join(mount.path, 'plain.img')], {
      encoding: 'utf8',
    });
    try {
      expect((await refusal(ids[0]!)).code).toBe('RESTORE_TARGET_BUSY');
    } finally {
      execFileSync('losetup', ['--detach', loop.trim()]);
    }
  });

  it.each([
    ['the middle', 1],
    ['the last', 2],
    ['the first', 0],
    ['the last once more', 2],
  ])('are put back with the memory of %s checkpoint', async (_, position) => {
    const { pid } = await cairn(['restore', ids[position]!, '--repo', repo], options);
    machine = await LabMachine.adopt('reflink', dir, Number(pid));
    await machine.guest('lab stop');
    for (const [i, letter] of letters.entries())
      await expectAgreement(machine, letter, pairsAfter[position]![i]!);
    execFileSync('qemu-img', ['check', '-q', '-U', join(mount.path, 'web.qcow2')]);
    await machine.kill();
  });

  it('are not put back to a clone that was written to, or is gone', async () => {
    const clone = join(mount.path, `plain.img.cairn-${ids[2]!}`);
    execFileSync('dd', [
      'if=/dev/zero',
      `of=${clone}`,
      'bs=512',
      'count=1',
      'conv=notrunc,fsync',
      'status=none',
    ]);
    expect(await refusal(ids[2]!)).toMatchObject({
      code: 'DISK_CHANGED',
      message: expect.stringContaining(clone),
    });
    await rm(join(mount.path, `web.qcow2.cairn-${ids[1]!}`));
    expect((await refusal(ids[1]!)).code).toBe('RESTORE_FAILED');
    await cairn(['restore', ids[2]!, '--repo', repo, '--keep-disks'], options).then(async ({ pid }) => {
      machine = await LabMachine.adopt('reflink', dir, Number(pid));
    });
  });

  it('keep later snapshots inside of a qcow2 image from being lost', async () => {
    await machine.kill();
    const snapshot = ['snapshot', '-c', 'later'];
    // Until the last thread of the QEMU that was killed has ended, the image is locked.
    for (let i = 0; spawnSync('qemu-img', [...snapshot, join(mount.path, 'web.qcow2')]).status !== 0; i++) {
      expect(i).toBeLessThan(100);
      await sleep(100);
    }
    expect(await refusal(ids[0]!)).toMatchObject({
      code: 'DISK_CHANGED',
      message: expect.stringContaining('later'),
    });
  });
});

describeReal('disks in files', () => {
  it('are refused with the reason where the file system has no reflinks', async () => {
    const dir = scratchDir('reflink-none');
    const mounts: LoopMount[] = [];
    let machine: LabMachine | undefined;
    try {
      mounts.push(LoopMount.make('ext4', dir, 256), LoopMount.make('xfs', dir, 512, ['-m', 'reflink=0']));
      const disks = mounts.map(
        ({ path }) => ({ file: join(path, 'plain.img'), format: 'raw', how: 'cache=none' }) as const,
      );
      for (const { file } of disks) execFileSync('qemu-img', ['create', '-q', '-f', 'raw', file, '64M']);
      machine = await LabMachine.start({
        name: 'none',
        dir,
        devices: [],
        extraArgs: driveArguments('/', disks),
      });
      const repo = join(dir, 'repo');
      await cairn(['init', '--repo', repo], { dir });
      const { exitCode, messages } = await runCairn(['checkpoint', machine.address, '--repo', repo], { dir });
      expect(exitCode).toBe(22);
      expect(messages.at(-1)).toMatchObject({
        code: 'DISK_NOT_COVERED',
        message: expect.stringMatching(/neither btrfs nor XFS.*was made without reflinks/s),
      });
    } finally {
      await machine?.kill();
      for (const mount of mounts) mount.unmount();
      removeWithRepositories(dir);
    }
    expect(existsSync(dir)).toBe(false);
  });
});

function freeBytes(path: string): number {
  const { bavail, bsize } = statfsSync(path);
  return bavail * bsize;
}
