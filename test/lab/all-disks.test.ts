/**
 * All disks or none: a restore whose second disk cannot be put back leaves the first one as it was, and dirty bitmaps of
 * a backup tool tell no lies afterwards.
 */

import { execFileSync } from 'node:child_process';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { cairn, runCairn, type CliOptions } from './support/cairn-cli.js';
import { scratchDir } from './support/lab-files.js';

interface Bitmap {
  readonly name: string;
  readonly granularity: number;
  readonly flags: readonly string[];
}

interface Info {
  readonly snapshots?: readonly { readonly name: string }[];
  readonly 'format-specific': { readonly data: { readonly bitmaps?: readonly Bitmap[] } };
}

const SIZE_MIB = 64;

let dir: string;
let first: string;
let second: string;
let machine: LabMachine;
let options: CliOptions & { readonly repo: string };
beforeAll(async () => {
  dir = scratchDir('all-disks');
  [first, second] = ['first', 'second'].map((name) => {
    const path = join(dir, `${name}.qcow2`);
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', path, `${SIZE_MIB}M`]);
    return path;
  }) as [string, string];
  const drive = (path: string, id: string): string[] => [
    ...['-drive', `file=${path},if=none,id=${id},format=qcow2`],
    ...['-device', `virtio-blk-pci,drive=${id}`],
  ];
  machine = await LabMachine.start({
    ...{ name: 'all-disks', memoryMib: 96, devices: [], dir },
    extraArgs: [...drive(first, 'd0'), ...drive(second, 'd1')],
  });
  options = { dir, repo: join(dir, 'repo') };
  await cairn(['init', '--repo', options.repo], options);
});
afterAll(() => machine.destroy());

async function write(disk: 'vda' | 'vdb', text: string): Promise<void> {
  await machine.guest(
    `echo ${text} | dd of=/dev/${disk} bs=1M seek=1 count=1 conv=sync oflag=direct 2>/dev/null; sync`,
  );
}

async function read(disk: 'vda' | 'vdb'): Promise<string> {
  return machine.guest(`dd if=/dev/${disk} bs=1M skip=1 count=1 iflag=direct 2>/dev/null | head -c 12`);
}

function infoOf(path: string): Info {
  const text = execFileSync('qemu-img', ['info', '-U', '--output=json', path], { encoding: 'utf8' });
  return JSON.parse(text) as Info;
}

function bitmapsOf(path: string): readonly Bitmap[] {
  return infoOf(path)['format-specific'].data.bitmaps ?? [];
}

function snapshotsOf(path: string): readonly string[] {
  return (infoOf(path).snapshots ?? []).map(({ name }) => name);
}

/** All that a guest could read. */
function digestOf(path: string): string {
  const raw = join(dir, 'as-read.raw');
  execFileSync('qemu-img', ['convert', '-O', 'raw', path, raw]);
  return execFileSync('sha256sum', [raw], { encoding: 'utf8' }).split(' ')[0]!;
}

/** Bytes that are marked in a bitmap, as the running QEMU counts them. */
async function markedBytes(): Promise<Readonly<Record<string, number>>> {
  const devices = (await machine.qmp.command('query-block')) as readonly {
    readonly inserted?: {
      readonly 'dirty-bitmaps'?: readonly { readonly name: string; readonly count: number }[];
    };
  }[];
  return Object.fromEntries(
    devices.flatMap(({ inserted }) =>
      (inserted?.['dirty-bitmaps'] ?? []).map(({ name, count }) => [name, count]),
    ),
  );
}

async function quit(): Promise<void> {
  // QEMU writes its bitmaps when it ends by itself.
  await machine.qmp.command('quit').catch(() => undefined);
  while (machine.isAlive()) await new Promise((resolve) => setTimeout(resolve, 20));
  await machine.kill();
}

/**
 * Makes an internal snapshot one that QEMU lists and cannot go back to: its table of clusters does not begin at a cluster.
 * The header of qcow2 has the number of snapshots at 60 and their place at 64; the first field of a snapshot is the place
 * of its table (docs/interop/qcow2.txt of QEMU).
 */
function spoilFirstSnapshot(path: string): () => void {
  const add = (bytes: bigint): void => {
    const file = openSync(path, 'r+');
    try {
      const number = Buffer.alloc(8);
      readSync(file, number, 0, 8, 64);
      const at = Number(number.readBigUInt64BE());
      readSync(file, number, 0, 8, at);
      number.writeBigUInt64BE(number.readBigUInt64BE() + bytes);
      writeSync(file, number, 0, 8, at);
    } finally {
      closeSync(file);
    }
  };
  add(512n);
  return () => add(-512n);
}

describe('a VM with two disks and a dirty bitmap on each', () => {
  let id: string;
  let before: readonly string[];
  beforeAll(async () => {
    await write('vda', 'v1');
    await write('vdb', 'v1');
    const taken = await cairn(['checkpoint', machine.address, '--repo', options.repo], options);
    id = String(taken.checkpoint_id);
    // A backup tool takes a full backup of what is there then, and begins to record.
    await write('vda', 'v2');
    await write('vdb', 'v2');
    for (const [node, name] of [
      ['d0', 'backup.first'],
      ['d1', 'backup.second'],
    ])
      await machine.qmp.command('block-dirty-bitmap-add', { node, name, persistent: true });
    await machine.guest('dd if=/dev/zero of=/dev/vda bs=64k seek=64 count=2 oflag=direct 2>/dev/null; sync');
  });

  it('is told of the bitmaps by doctor, and by a checkpoint', async () => {
    const doctor = await cairn(['doctor', machine.address], options);
    expect(doctor.hazards).toContainEqual(
      expect.objectContaining({
        code: 'DIRTY_BITMAPS',
        effect: 'note',
        text: expect.stringMatching(/backup\.first of .*first\.qcow2; backup\.second of .*second\.qcow2/),
      }),
    );
    const { stderr } = await runCairn(['checkpoint', machine.address, '--repo', options.repo], options);
    expect(stderr).toContain('a backup tool keeps dirty bitmaps');
  });

  it('finds all as it was when its second disk cannot be put back', async () => {
    await quit();
    before = [digestOf(first), digestOf(second)];
    const bitmaps = [bitmapsOf(first), bitmapsOf(second)];
    const snapshots = [snapshotsOf(first), snapshotsOf(second)];
    const mend = spoilFirstSnapshot(second);
    const { exitCode, messages } = await runCairn(['restore', id, '--repo', options.repo], options);
    mend();
    expect({ exitCode, error: messages.at(-1) }).toMatchObject({
      error: {
        code: 'RESTORE_FAILED',
        message: expect.stringMatching(/second\.qcow2.*all disks are as they were before the restore/s),
      },
    });
    expect([digestOf(first), digestOf(second)]).toEqual(before);
    expect([snapshotsOf(first), snapshotsOf(second)]).toEqual(snapshots);
    expect([bitmapsOf(first), bitmapsOf(second)]).toEqual(bitmaps);
    for (const path of [first, second]) execFileSync('qemu-img', ['check', '-q', path]);
  });

  it('is refused before anything is touched when its second disk cannot be written', async () => {
    execFileSync('chattr', ['+i', second]);
    try {
      const { messages } = await runCairn(['restore', id, '--repo', options.repo], options);
      expect(messages.at(-1)).toMatchObject({
        code: 'RESTORE_FAILED',
        message: expect.stringMatching(/second\.qcow2 cannot be written/),
      });
    } finally {
      execFileSync('chattr', ['-i', second]);
    }
    expect([digestOf(first), digestOf(second)]).toEqual(before);
  });

  it('finds all as it was when QEMU refuses the checkpoint after its disks were put back', async () => {
    const before = [digestOf(first), digestOf(second)];
    // Disks with other registers than they had: QEMU finds that out when it loads their state, the last of the stream.
    const otherDisks = ['--set-arg', '-global=virtio-blk-pci.disable-modern=on'];
    const { exitCode, messages } = await runCairn(
      ['restore', id, '--repo', options.repo, ...otherDisks],
      options,
    );
    expect(messages.at(-1)).toMatchObject({
      code: 'RESTORE_FAILED',
      message: expect.stringContaining('virtio'),
    });
    expect(exitCode).not.toBe(0);
    expect([digestOf(first), digestOf(second)]).toEqual(before);
    expect(snapshotsOf(first).filter((name) => name.includes('before'))).toEqual([]);
  });

  it('is restored with both disks, and its bitmaps have everything marked as changed', async () => {
    const { stderr, messages } = await runCairn(['restore', id, '--repo', options.repo], options);
    expect(stderr).toMatch(/first\.qcow2 has dirty bitmaps .*backup\.first.*everything is marked/);
    const { pid } = messages.at(-1) as unknown as { readonly pid: number };
    machine = await LabMachine.adopt('all-disks', dir, pid);
    await machine.waitForProgress();
    expect(
      await Promise.all([read('vda'), read('vdb')].map(async (text) => (await text).slice(0, 2))),
    ).toEqual(['v1', 'v1']);
    expect(await markedBytes()).toEqual({
      'backup.first': SIZE_MIB << 20,
      'backup.second': SIZE_MIB << 20,
    });
    for (const path of [first, second])
      expect(snapshotsOf(path).filter((name) => name.includes('before'))).toEqual([]);
  });
});
