/**
 * Repositories on file systems on which nothing more can be written. What is there stays whole, and Cairn's own commands free it: nobody has
 * to remove a file by hand.
 */

import { execFileSync, spawnSync } from 'node:child_process';
import { randomBytes, randomFillSync } from 'node:crypto';
import { chmodSync, chownSync, mkdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { FAULT_POINTS } from '../../src/checkpoint/fault-points.js';
import { EXIT } from '../../src/cli/exit-codes.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { FileBackend } from '../../src/storage/file.js';
import { Repository } from '../../src/repository/repository.js';
import { migrationOf } from '../fuzz/small-machines.js';
import { verifyRepository } from '../golden/verifier.js';
import { strays } from '../support/forget-model.js';
import { LabMachine } from './machine.js';
import { CAIRN_MAIN } from '../support/cairn-main.js';
import { cairn, CairnProcess, isSummary, runCairn, type CliOptions } from './support/cairn-cli.js';
import { emptyFiller, fillBlocks, FILLER, fillInodes, type Owner } from './support/full-file-system.js';
import { scratchDir } from './support/lab-files.js';
import { ensureFileSystemTools, LoopMount, whyNoLoopMounts } from './support/loop-mount.js';

const reason = whyNoLoopMounts(['ext4']);
if (reason !== '') process.stderr.write(`test/lab/full-disk.test.ts is skipped: ${reason}\n`);
const describeReal = reason === '' ? describe : describe.skip;

const ROOT: Owner = { uid: 0, gid: 0 };
const NOBODY: Owner = { uid: 65_534, gid: 65_534 };
const STORED = 6;
/** More than the reserve of a chain has room for. */
const LAYOUT = layOut([{ id: 'pc.ram', sizeBytes: 1 << 20 }]);
/** Where the project lies below root's home, nobody cannot load it. */
const isRunnableByNobody =
  reason === '' && spawnSync(process.execPath, [CAIRN_MAIN, '--version'], NOBODY).status === 0;
const hasBtrfs = reason === '' && whyNoLoopMounts(['btrfs']) === '';
if (reason === '' && !hasBtrfs) process.stderr.write('no quota is tried: this kernel has no btrfs\n');
if (reason === '' && !isRunnableByNobody)
  process.stderr.write(`skipped: user ${NOBODY.uid} cannot run ${CAIRN_MAIN}\n`);

interface Kind {
  readonly name: string;
  /** @param dir gets the image */
  readonly make: (dir: string) => LoopMount;
  readonly owner: Owner;
  readonly fill: (mount: string, owner: Owner) => void;
}

const KINDS: readonly Kind[] = [
  {
    name: 'without one free block',
    make: (dir) => ext4(dir, '-m', '0'),
    owner: ROOT,
    fill: fillBlocks,
  },
  {
    name: 'without one free inode',
    make: (dir) => ext4(dir, '-m', '0', '-N', '256'),
    owner: ROOT,
    fill: fillInodes,
  },
  {
    name: 'whose last blocks are reserved for somebody else',
    make: (dir) => ext4(dir, '-m', '25'),
    owner: NOBODY,
    fill: fillBlocks,
  },
  {
    name: 'whose quota is used up',
    make: btrfsWithQuota,
    owner: ROOT,
    fill: fillBlocks,
  },
];

/** A migration stream of a guest that has written to every second page of its memory. */
function workedOn(memory: Buffer): Promise<Buffer> {
  for (let at = 0; at < memory.length; at += 2 * PAGE_SIZE_BYTES) randomFillSync(memory, at, PAGE_SIZE_BYTES);
  return migrationOf(LAYOUT, async function* () {
    yield await Promise.resolve({ firstPage: 0, pageCount: LAYOUT.pageSpan, bytes: memory });
  });
}

function ext4(dir: string, ...args: readonly string[]): LoopMount {
  return LoopMount.make('ext4', dir, 32, ['-b', '4096', ...args]);
}

/** Of btrfs, which holds for root as well, and needs nothing else of the kernel. */
function btrfsWithQuota(dir: string): LoopMount {
  ensureFileSystemTools();
  const mount = LoopMount.make('btrfs', dir, 256);
  execFileSync('btrfs', ['quota', 'enable', mount.path]);
  execFileSync('btrfs', ['qgroup', 'limit', '24M', mount.path]);
  return mount;
}

describeReal.each(
  KINDS.filter(
    ({ make, owner }) => (owner === ROOT || isRunnableByNobody) && (make !== btrfsWithQuota || hasBtrfs),
  ),
)('a repository on a file system $name', ({ make, owner, fill }) => {
  let dir = '';
  let mount: LoopMount;
  let repo = '';
  let options: CliOptions;
  const memory = randomBytes(LAYOUT.pageSpan * PAGE_SIZE_BYTES);
  const ids: string[] = [];

  beforeAll(async () => {
    dir = scratchDir('full');
    chmodSync(dir, 0o711);
    mount = make(dir);
    repo = join(mount.path, 'repo');
    const home = join(dir, 'home');
    for (const path of [repo, join(mount.path, FILLER), home]) {
      mkdirSync(path);
      chownSync(path, owner.uid, owner.gid);
    }
    // The runtime and state folders of the test run are root's.
    options = { dir: home, ...owner, env: { CAIRN_STATE_DIR: join(home, 'state'), TMPDIR: home } };
    mkdirSync(join(home, 'runtime'), { mode: 0o700 });
    chownSync(join(home, 'runtime'), owner.uid, owner.gid);
    await run('init');
    for (let n = 0; n < STORED; n++) ids.push(String((await run(...(await importing()))).checkpoint_id));
  });
  afterAll(() => {
    mount.unmount();
    rmSync(dir, { recursive: true });
  });

  /** Makes a file of the guest after another while. */
  async function importing(): Promise<readonly string[]> {
    const path = join(dir, 'web1.mig');
    writeFileSync(path, await workedOn(memory), { mode: 0o644 });
    return ['import', path, '--format', 'qemu', '--name', 'web1'];
  }
  const run = (...args: readonly string[]) => cairn([...args, '--repo', repo], options);

  async function mustHold(expected: readonly string[]): Promise<void> {
    expect(await run('verify')).toMatchObject({ problems: [], checkpoints: expected.length });
    expect(verifyRepository(repo).map(({ id }) => id)).toEqual(expected);
  }

  it('takes no checkpoint, and keeps those that are there', async () => {
    fill(mount.path, owner);
    const { exitCode, messages } = await runCairn([...(await importing()), '--repo', repo], options);
    expect(messages.at(-1)).toMatchObject({ code: 'STORAGE_FULL', hint: expect.stringMatching(/./) });
    expect(exitCode).toBe(EXIT.storage);
    await mustHold(ids);
  });

  it('is freed by forget', async () => {
    // The refused checkpoint may have given back a little of the reserve.
    fill(mount.path, owner);
    expect(await run('forget', '--name', 'web1', '--keep-last', '1')).toMatchObject({
      problems: [],
      short_of_room: false,
    });
    await mustHold(ids.slice(-1));
  });

  it('takes checkpoints again, once there is room', async () => {
    emptyFiller(mount.path);
    ids.push(String((await run(...(await importing()))).checkpoint_id));
    await mustHold(ids.slice(-2));
  });

  it('is freed by prune of what a crash has left', async () => {
    const killed = await runCairn([...(await importing()), '--repo', repo], {
      ...options,
      env: { ...options.env, CAIRN_FAULT_POINT: `${FAULT_POINTS.indexDurable}` },
    });
    expect(killed.signal).toBe('SIGKILL');
    const repository = await Repository.open(new FileBackend(repo));
    expect(await strays(repository)).not.toEqual([]);
    fill(mount.path, owner);
    expect(await run('prune')).toMatchObject({ problems: [], short_of_room: false });
    expect(await strays(repository)).toEqual([]);
    await mustHold(ids.slice(-2));
  });
});

const ROOM_BYTES = 12 << 20;

describeReal('a watcher of a real guest, with room for a base and some increments', () => {
  let machine: LabMachine;
  let mount: LoopMount;
  let repo = '';
  let options: CliOptions;

  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'small', memoryMib: 96 });
    options = { dir: machine.dir };
    await machine.waitForProgress();
    const large = join(machine.dir, 'large');
    await cairn(['init', '--repo', large], options);
    const base = await cairn(['checkpoint', machine.address, '--repo', large], options);
    mount = LoopMount.make('ext4', machine.dir, 128, ['-b', '4096', '-m', '0']);
    repo = join(mount.path, 'repo');
    await cairn(['init', '--repo', repo], options);
    const tooMuch = freeBytes() - Number(base.stored_bytes) - ROOM_BYTES;
    writeFileSync(join(mount.path, FILLER), Buffer.alloc(tooMuch));
  });
  afterAll(async () => {
    mount.unmount();
    await machine.destroy();
  });

  /** Half a MiB of 4 MiB: what an increment has does not depend on how late it comes. */
  async function work(n: number): Promise<void> {
    await machine.guest(`dd if=/dev/urandom of=/tmp/work bs=64k count=8 seek=${(n % 8) * 8} conv=notrunc`);
  }

  function freeBytes(): number {
    const { bavail, bsize } = statfsSync(mount.path);
    return bavail * bsize;
  }

  it('takes every checkpoint, though all of them would not have room', async () => {
    const room = freeBytes();
    const watch = new CairnProcess(
      ['watch', machine.address, '--repo', repo, '--every', '0.2', '--keep-last', '2'],
      options,
    );
    for (let stored = 0, taken = 0; stored < room + ROOM_BYTES; taken++) {
      const message = await watch.message((one) => isSummary(one) || one.message_type === 'error', taken);
      expect(message).toEqual(expect.objectContaining({ message_type: 'summary' }));
      stored += Number(message.stored_bytes);
      await work(taken);
    }
    watch.child.kill('SIGTERM');
    const { messages } = await watch.ended;
    expect(messages.filter(({ message_type }) => message_type === 'error')).toEqual([]);
    expect(messages.findLast((message) => 'failed' in message)).toMatchObject({ failed: 0 });
  }, 300_000);
});
