import { readdir } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { cairn } from './support/cairn-cli.js';
import { groundTruth } from './support/ground-truth.js';
import { checkpointAgainstTruth, differingFromStored } from './support/oracle.js';
import { rewindRounds, sectorsFromTheFuture } from './support/rewind-rounds.js';
import { checkpoint, differing, goOn, optionsOf, rewound, type RewindOptions } from './support/rewinding.js';

describe.each(['7.2', '10.0'] as const)('a running QEMU %s is put back to a checkpoint', (qemu) => {
  let machine: LabMachine;
  let options: RewindOptions;
  const ids: string[] = [];
  beforeAll(async () => {
    machine = await LabMachine.start({
      name: 'rewind',
      memoryMib: 128,
      qemu,
      devices: ['disk', 'net', 'balloon', 'vga'],
    });
    options = optionsOf(machine);
    await cairn(['init', '--repo', options.repo], options);
    await machine.guest('lab fill 8; lab memory 8; lab pair');
    for (let i = 0; i < 3; i++) {
      ids.push(String((await checkpoint(machine)).checkpoint_id));
      await machine.waitForProgress();
    }
  });
  afterAll(() => machine.destroy());

  it.each([
    ['the newest', 2],
    ['the first', 0],
    ['one between', 1],
  ])('to %s, with every byte of memory as it was, by the stream of QEMU itself', async (_, position) => {
    const result = await rewound(machine, ids[position], '--paused');
    expect(result).toMatchObject({
      checkpoint_id: ids[position],
      running: false,
      took_up: false,
      undo_id: '',
    });
    expect(result.disks).toHaveLength(1);
    expect(await machine.qmp.status()).toBe('paused');
    expect(await differingFromStored(await groundTruth(machine), options.repo, ids[position]!)).toEqual([]);
    await goOn(machine);
  });

  it('and goes on: counter and open file, and no sector from the future on its disk', async () => {
    const sum = await machine.guest('lab sum');
    expect(await rewound(machine, ids[1])).toMatchObject({ running: true });
    await goOn(machine);
    expect(await machine.guest('lab sum')).toBe(sum);
    expect(await sectorsFromTheFuture(machine)).toBe(0);
    // The check finds something when the disk stays at the present.
    await rewound(machine, ids[2]);
    await machine.guest('true');
    await sleep(1500);
    await rewound(machine, ids[0], '--keep-disks');
    expect(await sectorsFromTheFuture(machine)).toBeGreaterThan(0);
    await rewound(machine, ids[2]);
  });

  it('and the next checkpoint is an increment that holds exactly what there is', async () => {
    await rewound(machine, ids[0]);
    await machine.guest('true');
    const { summary, differing: wrong } = await checkpointAgainstTruth(machine, [], options);
    expect(wrong).toEqual([]);
    expect(summary).toMatchObject({ kind: 'incremental', compare_reason: '', parent_id: ids[2] });
    // Twice in a row, without a checkpoint in between.
    await rewound(machine, summary.checkpoint_id);
    await rewound(machine, ids[1]);
    const again = await checkpointAgainstTruth(machine, [], options);
    expect(again.differing).toEqual([]);
    expect(again.summary).toMatchObject({
      kind: 'incremental',
      compare_reason: '',
      parent_id: summary.checkpoint_id,
    });
  });

  it('and forgetting what it was put back to makes the next checkpoint compare all pages', async () => {
    await rewound(machine, ids[1]);
    await cairn(['forget', ids[1]!, '--repo', options.repo], options);
    const { summary, differing: wrong } = await checkpointAgainstTruth(machine, [], options);
    expect(wrong).toEqual([]);
    expect(summary.compare_reason).toContain('rewound');
  });

  it('with memory for no page before the pause, which then reads them', async () => {
    await machine.waitForProgress();
    const result = await rewound(machine, ids[0], '--paused', '--room', '0');
    expect(result.pages_read_in_pause).toBeGreaterThan(100);
    expect(await differing(machine, ids[0])).toEqual([]);
    await goOn(machine);
  });

  it('and back to what it was before, by the checkpoint that --undo has taken', async () => {
    const { undo_id: undo } = await rewound(machine, ids[0], '--undo');
    expect(undo).toMatch(/^[0-9a-f]{16}$/);
    await goOn(machine);
    await rewound(machine, undo, '--paused');
    expect(await differing(machine, undo)).toEqual([]);
    await goOn(machine);
  });

  it('and one that was found paused stays paused', async () => {
    await machine.qmp.command('stop');
    expect(await rewound(machine, ids[2])).toMatchObject({ running: false });
    expect(await machine.qmp.status()).toBe('paused');
    expect(await differing(machine, ids[2])).toEqual([]);
    await goOn(machine);
  });

  it('tens of times, each to a random one of four', async () => {
    expect(await rewindRounds(machine, { rounds: 20, checkpoints: 4, seed: 7, guestEvery: 5 })).toEqual([]);
  });

  it('and leaves nothing in QEMU: no node, no job, no descriptor', async () => {
    const nodes = (await machine.qmp.command('query-named-block-nodes', {})) as readonly Record<
      string,
      unknown
    >[];
    expect(nodes.filter((node) => String(node['node-name']).startsWith('cairn-'))).toEqual([]);
    expect(await machine.qmp.command('query-jobs', {})).toEqual([]);
    expect(await machine.qmp.command('query-fdsets', {})).toEqual([]);
    expect((await readdir(`/proc/${machine.pid}/fd`)).length).toBeLessThan(64);
  });
});
