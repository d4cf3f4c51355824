import { execFileSync } from 'node:child_process';
import { cpSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';

import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { LabMachine } from './machine.js';
import { cairn, CairnProcess } from './support/cairn-cli.js';
import {
  endKids,
  forkArgs,
  forked,
  forksOf,
  left,
  ownBytes,
  templateHolders,
  tryFork,
} from './support/forking.js';
import { checkpointAgainstTruth, differingFromStored, readCheckpoint } from './support/oracle.js';
import { processTruth } from './support/process-truth.js';
import { checkpoint, goOn, optionsOf, type RewindOptions } from './support/rewinding.js';

const GENERATION = '11111111-2222-3333-4444-555555555555';
const MIB = 1 << 20;

/** QEMU 7.2 without a generation id: there is nothing in a child that is not in the checkpoint. */
const machines = [
  { qemu: '7.2', extraArgs: [] },
  { qemu: '10.0', extraArgs: ['-device', `vmgenid,id=generation,guid=${GENERATION}`] },
] as const;

describe.each(machines)('a checkpoint of QEMU $qemu is forked', ({ qemu, extraArgs }) => {
  let origin: LabMachine;
  let options: RewindOptions;
  let id = '';
  let sum = '';
  let kids: LabMachine[] = [];
  /** The generation id lies in memory, and each child has another one. */
  const differingBytes = extraArgs.length === 0 ? 0 : 16;

  const fork = async (from: string, ...args: readonly string[]) => {
    const result = await forked(origin, from, ...args);
    kids = result.kids;
    return result;
  };

  beforeAll(async () => {
    origin = await LabMachine.start({
      ...{ name: 'origin', memoryMib: 128, qemu, extraArgs, uuid: GENERATION },
      devices: ['disk', 'net', 'balloon', 'vga'],
    });
    options = optionsOf(origin);
    await cairn(['init', '--repo', options.repo], options);
    await origin.guest('lab fill 16; echo origin | dd of=/dev/vda bs=512 conv=sync oflag=direct 2>/dev/null');
    sum = await origin.guest('lab sum');
    id = String((await checkpoint(origin)).checkpoint_id);
  });
  afterEach(async () => {
    await endKids(origin, kids);
    kids = [];
    expect(templateHolders()).toEqual([]);
  });
  afterAll(() => origin.destroy());

  /** First sector of the guest's disk. */
  const sector = (machine: LabMachine): Promise<string> =>
    machine
      .guest('dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | tr -d "\\0"')
      .then((text) => text.trim());

  const writeSector = (machine: LabMachine, text: string): Promise<string> =>
    machine.guest(`echo ${text} | dd of=/dev/vda bs=512 conv=sync oflag=direct 2>/dev/null`);

  /**
   * Bytes of all RAM blocks in which a machine that stands still is not the checkpoint, which fit into one
   * page.
   */
  async function bytesThatDiffer(machine: LabMachine): Promise<number> {
    const truth = await processTruth(machine);
    const pages = await differingFromStored(truth, options.repo, id);
    if (pages.length === 0) return 0;
    expect(pages).toEqual([expect.stringMatching(/^pc\.ram page \d+$/)]);
    const stored = (await readCheckpoint(options.repo, id)).get('pc.ram')!;
    const at = Number(pages[0]!.split(' ').at(-1)) * PAGE_SIZE_BYTES;
    const found = truth.get('pc.ram')!.subarray(at, at + PAGE_SIZE_BYTES);
    const differing = [...found.keys()].filter((i) => found[i] !== stored[at + i]);
    return differing.at(-1)! - differing[0]! < 16 ? 16 : differing.length;
  }

  /** Whoever looks after the children needs a moment. */
  async function nothingLeft(): Promise<void> {
    const untilMs = Date.now() + 20_000;
    while (left(origin).length > 0 || templateHolders().length > 0) {
      if (Date.now() > untilMs) throw new Error(`left: ${left(origin).join()}, ${templateHolders().join()}`);
      await sleep(20);
    }
  }

  it('into machines that are it in every byte, go on by themselves, and leave it as it is', async () => {
    const { summary, children } = await fork(id, '-n', '2', '--paused');
    expect(summary).toMatchObject({ checkpoint_id: id, running: false, failed_after: [] });
    for (const kid of kids) {
      expect(await kid.qmp.status()).toMatch(/paused|prelaunch/);
      expect(await bytesThatDiffer(kid)).toBe(differingBytes);
      expect(ownBytes(kid)).toBeLessThan(4 * MIB);
    }
    for (const key of [
      'uuid',
      'pid',
      'folder',
      'vm_address',
      ...(differingBytes === 0 ? [] : ['generation_id']),
    ])
      expect(new Set(children.map((child) => child[key as keyof typeof child])).size).toBe(2);
    expect(new Set(children.flatMap(({ macs }) => macs)).size).toBe(2);

    for (const kid of kids) await goOn(kid);
    await writeSector(origin, 'later');
    await Promise.all(kids.map((kid) => writeSector(kid, kid.name)));
    for (const kid of kids) {
      expect(await kid.guest('lab sum')).toBe(sum);
      expect(await sector(kid)).toBe(kid.name);
      expect(ownBytes(kid)).toBeLessThan(48 * MIB);
    }
    expect(await sector(origin)).toBe('later');
    await origin.waitForProgress();
    // What the first ones did is in none that comes later.
    await endKids(origin, kids);
    await fork(id);
    expect(await sector(kids[0]!)).toBe('origin');
  });

  it('and no child changes another by giving memory back', async () => {
    await fork(id, '-n', '2', '--paused');
    const [gives, stands] = kids as [LabMachine, LabMachine];
    await goOn(gives);
    await gives.qmp.command('balloon', { value: 100 * MIB });
    await sleep(1500);
    await goOn(gives);
    expect(await gives.guest('lab sum')).toBe(sum);
    expect(await bytesThatDiffer(stands)).toBe(differingBytes);
    await gives.qmp.command('balloon', { value: 128 * MIB });
    await gives.waitForProgress();
  });

  it('and a child has checkpoints of its own, which say where it came from, and come back without its siblings', async () => {
    await fork(id, '-n', '2');
    const [kid] = kids as [LabMachine, LabMachine];
    const first = await cairn(['checkpoint', kid.address, '--repo', options.repo], options);
    expect(first).toMatchObject({ kind: 'base' });
    await kid.guest('lab fill 1');
    const second = await checkpointAgainstTruth(kid, [], options, processTruth);
    expect(second).toMatchObject({ differing: [], summary: { kind: 'incremental', compare_reason: '' } });
    const tree = await cairn(['list', '--tree', '--repo', options.repo], options);
    const of = (one: unknown) => expect.objectContaining({ checkpoint_id: one });
    const cameFrom = expect.objectContaining({
      forked_from: expect.objectContaining({ checkpoint_id: id }),
    });
    expect(tree.checkpoints).toEqual([of(id), cameFrom, cameFrom]);
    const back = ['rewind', kid.address, String(first.checkpoint_id), '--repo', options.repo, '--paused'];
    await cairn(back, options);
    const rewound = await processTruth(kid);
    expect(await differingFromStored(rewound, options.repo, String(first.checkpoint_id))).toEqual([]);
    await kid.kill();
    const args = ['restore', String(second.summary.checkpoint_id), '--repo', options.repo, '--paused'];
    const restored = await LabMachine.adopt(kid.name, kid.dir, Number((await cairn(args, options)).pid));
    kids[0] = restored;
    expect(
      await differingFromStored(
        await processTruth(restored),
        options.repo,
        String(second.summary.checkpoint_id),
      ),
    ).toEqual([]);
    await goOn(restored);
  });

  // What Cairn does by itself is the same whatever the version.
  if (qemu !== '7.2') return;

  it('with a command for each, before it runs and after, in their order', async () => {
    const log = join(origin.dir, 'each.log');
    const each = `echo $CAIRN_PHASE $CAIRN_FORK_INDEX $CAIRN_VM_NAME $CAIRN_VM $CAIRN_FORK_MACS >> ${log}`;
    const { children } = await fork(id, '-n', '2', '--each', each);
    const said = (phase: string) =>
      children.map(
        ({ name, vm_address, macs }, i) => `${phase} ${i} ${name} ${vm_address} ${macs.join(' ')}`,
      );
    expect(readFileSync(log, 'utf8').trim().split('\n')).toEqual([...said('before'), ...said('after')]);
    for (const kid of kids) await kid.waitForProgress();
  });

  it.each([
    ['a command that fails', 'test $CAIRN_FORK_INDEX = 0', 'HOOK_FAILED'],
    ['kill -9 of the command itself', 'test $CAIRN_FORK_INDEX = 0 || kill -9 $PPID', undefined],
  ])('or not at all: %s before they run leaves nothing', async (_, each, code) => {
    const { messages, exitCode } = await tryFork(origin, id, '-n', '3', '--each', each);
    if (code === undefined) expect(exitCode).toBeNull();
    else expect(messages.at(-1)).toMatchObject({ code });
    await nothingLeft();
    await origin.waitForProgress();
  });

  it('or not at all: kill -9 while they are started leaves nothing', async () => {
    const process = new CairnProcess(forkArgs(origin, id, ['-n', '8']), options);
    while (!left(origin).includes('kid-2') && !process.isOver) await sleep(2);
    process.child.kill('SIGKILL');
    expect((await process.ended).signal).toBe('SIGKILL');
    await nothingLeft();
    await origin.waitForProgress();
  });

  it('or not at all: a flipped bit in the repository is found before any of them is started', async () => {
    const damaged = join(origin.dir, 'damaged');
    origin.damagedOnPurpose.add(damaged);
    cpSync(options.repo, damaged, { recursive: true });
    const packs = join(damaged, 'vms/origin/packs');
    // The first one is of all memory, and the middle of it of what the guest filled with random data.
    const pack = join(packs, readdirSync(packs)[0]!);
    const bytes = readFileSync(pack);
    bytes[bytes.length >>> 1]! ^= 1;
    writeFileSync(pack, bytes);
    const { exitCode, messages } = await tryFork(origin, id, '-n', '2', '--repo', damaged);
    expect(exitCode).toBe(23);
    expect(messages.at(-1)).toMatchObject({ code: 'REPO_DAMAGED' });
    expect(left(origin)).toEqual([]);
  });

  it('or not at all: when one of them cannot be had, the others are not either', async () => {
    await mkdir(join(forksOf(origin), 'kid-2'), { recursive: true });
    writeFileSync(join(forksOf(origin), 'kid-2', 'somebody'), 'else');
    const { messages, exitCode } = await tryFork(origin, id, '-n', '4');
    expect(exitCode).toBe(22);
    expect(messages.at(-1)).toMatchObject({ code: 'FORK_REFUSED', detail: { reason: 'FOLDER_TAKEN' } });
    expect(left(origin)).toEqual(['kid-2']);
    expect(templateHolders()).toEqual([]);
    await rm(join(forksOf(origin), 'kid-2'), { recursive: true });
  });

  it('by the examples, which leave nothing: children that are torn down, and a search that rewinds', () => {
    const run = (name: string, ...args: readonly string[]): string => {
      const program = fileURLToPath(new URL(`../../examples/${name}/main.js`, import.meta.url));
      const env = { ...process.env, NODE_OPTIONS: '', CAIRN_RUNTIME_DIR: join(origin.dir, 'runtime') };
      return execFileSync(process.execPath, [program, ...args], { env, encoding: 'utf8' });
    };
    const said = run('sixteen-forks', options.repo, id, forksOf(origin), '3', '0.5');
    expect(said.match(/^fork-[012] .*Anonymous/gm)).toHaveLength(3);
    expect(left(origin)).toEqual([]);
    const found = run('search', origin.address, options.repo, '10', 'test $CAIRN_TRY = 7');
    expect(found).toMatch(/^found by try 7, .*; 7 rewinds/);
  });

  it('by the address of a VM, which is checkpointed first, its disk by an overlay', async () => {
    const taken = await checkpoint(origin, '--disks', 'external');
    const { children } = await fork(String(taken.checkpoint_id), '-n', '2');
    const images = children.map(({ folder }) => join(folder, 'disk0.qcow2'));
    for (const image of images)
      expect(execFileSync('qemu-img', ['info', '-U', image], { encoding: 'utf8' })).toContain(
        `backing file: ${join(origin.dir, 'disk.qcow2')}`,
      );
    await Promise.all(kids.map((kid) => writeSector(kid, kid.name)));
    for (const kid of kids) expect(await sector(kid)).toBe(kid.name);
    await endKids(origin, kids);
    await fork(origin.address);
    await kids[0]!.waitForProgress();
    expect(await sector(kids[0]!)).toBe('later');
  });

  it('but not one without the disk that the guest writes to', async () => {
    const bare = await checkpoint(origin, '--memory-only');
    const { exitCode, messages } = await tryFork(origin, bare.checkpoint_id);
    expect(exitCode).toBe(22);
    expect(messages.at(-1)).toMatchObject({ code: 'DISK_NOT_COVERED' });
    expect(left(origin)).toEqual([]);
  });
});
