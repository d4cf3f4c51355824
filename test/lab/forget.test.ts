/** Checkpoints of a real guest are forgotten, with their disk snapshots; what stays is restored, and the chain goes on. */

import { execFileSync } from 'node:child_process';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { cairn, isSummary, runCairn } from './support/cairn-cli.js';
import { GENTLE_DISK_LOAD, gentleLoad } from './support/guest-loads.js';
import { differingPages, groundTruth } from './support/ground-truth.js';
import { checkpointAgainstTruth, readCheckpoint, differingFromStored } from './support/oracle.js';

const CHECKPOINTS = 8;

describe('forgetting checkpoints of a working guest', () => {
  let machine: LabMachine;
  let options: { dir: string; repo: string };
  const ids: string[] = [];
  const memories = new Map<string, Map<string, Buffer>>();
  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'forget', memoryMib: 104, devices: ['disk', 'balloon'] });
    options = { dir: machine.dir, repo: join(machine.dir, 'repo') };
    await cairn(['init', '--repo', options.repo], options);
    await machine.guest(gentleLoad(8));
    await machine.guest(GENTLE_DISK_LOAD);
  });
  afterAll(() => machine.destroy());

  function repo(...args: readonly string[]): readonly string[] {
    return [...args, '--repo', options.repo];
  }

  /** Ids of checkpoints that have a snapshot in the disk. */
  function inDisk(): readonly string[] {
    const path = join(machine.dir, 'disk.qcow2');
    const list = execFileSync('qemu-img', ['snapshot', '-U', '-l', path], { encoding: 'latin1' });
    return [...list.matchAll(/cairn-([0-9a-f]{16})/g)].map(([, id]) => id!);
  }

  async function mustBeAsTaken(kept: readonly string[]): Promise<void> {
    const { checkpoints } = await cairn(repo('list'), options);
    expect((checkpoints as { checkpoint_id: string }[]).map((one) => one.checkpoint_id)).toEqual(kept);
    for (const id of kept) expect(await differingFromStored(memories.get(id)!, options.repo, id)).toEqual([]);
    expect(await cairn(repo('verify'), options)).toMatchObject({ problems: [] });
  }

  async function checkpoint(): Promise<Record<string, unknown>> {
    const { summary, differing } = await checkpointAgainstTruth(machine, [], options);
    expect(differing).toEqual([]);
    const id = String(summary.checkpoint_id);
    ids.push(id);
    memories.set(id, await readCheckpoint(options.repo, id));
    return summary;
  }

  it('removes them and their disk snapshots while the guest runs, and leaves the others as they were', async () => {
    for (let i = 0; i < CHECKPOINTS; i++) await checkpoint();
    expect(inDisk()).toEqual(ids);
    const args = ['forget', '--keep-last', '3', '--with-disks', '--vm', machine.address];
    const summary = await cairn(repo(...args), options);
    expect(summary).toMatchObject({ problems: [], disks: [] });
    expect(summary.removed).toHaveLength(CHECKPOINTS - 3);
    expect(Number(summary.freed_bytes)).toBeGreaterThan(0);
    expect(inDisk()).toEqual(ids.slice(-3));
    await mustBeAsTaken(ids.slice(-3));
    await machine.waitForProgress();
  });

  it('of the newest one, the tracker is trusted still', async () => {
    expect(await checkpoint()).toMatchObject({
      kind: 'incremental',
      compare_reason: '',
      parent_id: ids.at(-2)!,
    });
    await mustBeAsTaken(ids.slice(-4));
  });

  it('the newest one itself: the next one is held against what is left, page by page', async () => {
    const newest = ids.pop()!;
    const summary = await cairn(repo('forget', newest), options);
    expect(summary).toMatchObject({ disks: [{ checkpoint_id: newest, mode: 'internal', why: '' }] });
    const next = await checkpoint();
    expect(next).toMatchObject({ kind: 'incremental', parent_id: ids.at(-2)! });
    expect(next.compare_reason).not.toBe('');
    expect(await checkpoint()).toMatchObject({ kind: 'incremental', compare_reason: '' });
    await mustBeAsTaken(ids.slice(-5));
  });

  it('goes with the watch itself, which goes on being trusted', async () => {
    const keep = ['--keep-last', '2', '--with-disks'];
    const args = ['watch', machine.address, '--every', '0.3', '--count', '25', ...keep];
    const { messages, exitCode } = await runCairn(repo(...args), options);
    expect(exitCode).toBe(0);
    const taken = messages.filter(isSummary);
    expect(taken).toHaveLength(25);
    expect(taken.map(({ compare_reason }) => compare_reason)).toEqual(taken.map(() => ''));
    for (const { checkpoint_id: id } of taken) ids.push(String(id));
    const forgets = messages.filter((message) => 'freed_bytes' in message);
    for (const { kept, problems } of forgets) {
      expect(kept).toHaveLength(2);
      expect(problems).toEqual([]);
    }
    // What they leave goes when there is time, and at the end.
    expect(forgets.at(-1)).toMatchObject({ swept: true });
    for (const id of ids.slice(-2)) memories.set(id, await readCheckpoint(options.repo, id));
    expect(inDisk()).toEqual(expect.arrayContaining(ids.slice(-2)));
    for (const id of ids.slice(-25, -2)) expect(inDisk()).not.toContain(id);
    expect(await checkpoint()).toMatchObject({ kind: 'incremental', compare_reason: '' });
    await mustBeAsTaken(ids.slice(-3));
  });

  it('goes with a single checkpoint that is given the policy', async () => {
    const args = ['checkpoint', machine.address, '--keep-last', '2', '--with-disks'];
    const { messages, exitCode } = await runCairn(repo(...args), options);
    expect(exitCode).toBe(0);
    ids.push(String(messages.find(isSummary)!.checkpoint_id));
    memories.set(ids.at(-1)!, await readCheckpoint(options.repo, ids.at(-1)!));
    expect(messages.find((message) => 'freed_bytes' in message)).toMatchObject({ problems: [] });
    expect(inDisk()).toEqual(expect.arrayContaining(ids.slice(-2)));
    expect(inDisk()).not.toContain(ids.at(-3));
    await mustBeAsTaken(ids.slice(-2));
  });

  it('leaves the last one to be restored, by which the guest goes on, and so does its chain', async () => {
    await cairn(repo('forget', '--keep-last', '1'), options);
    await mustBeAsTaken(ids.slice(-1));
    await machine.kill();
    const id = ids.at(-1)!;
    const { pid } = await cairn(repo('restore', id, '--paused'), options);
    const again = await LabMachine.adopt('forget', machine.dir, Number(pid));
    try {
      expect(differingPages(memories.get(id)!, await groundTruth(again))).toEqual([]);
      const bytes = again.diary().length;
      await again.qmp.command('cont');
      const first = await again.waitForTick(1, 60_000, bytes);
      await again.waitForTick(first.tick + 3, 60_000, bytes);
      expect(again.ticks(bytes).every(({ tick, lines }) => tick === lines)).toBe(true);
      machine = again;
      expect(await checkpoint()).toMatchObject({ kind: 'incremental', parent_id: id });
      expect(await checkpoint()).toMatchObject({ kind: 'incremental', compare_reason: '' });
      await mustBeAsTaken(ids.slice(-3));
    } finally {
      await again.kill();
    }
  });

  it('removes disk snapshots of a VM that does not run', async () => {
    const left = inDisk();
    expect(left).toContain(ids.at(-2));
    const before = await runCairn(repo('forget', ids.at(-2)!, '--with-disks'), options);
    expect(before.exitCode).toBe(0);
    expect(inDisk()).toEqual(left.filter((id) => id !== ids.at(-2)));
  });
});
