/**
 * What checkpoints cost the guest: operations per second inside it, without Cairn, with the tracker alone being harvested, and
 * with a checkpoint every so often. Stretches with and without take turns. Guest and Cairn share this machine's cores.
 */

import { mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { defaultRuntimeDir } from '../../src/checkpoint/runtime-dir.js';
import { CheckpointSession, hypervisors, openBackend, Repository } from '../../src/index.js';
import { LabMachine } from '../../test/lab/machine.js';
import { againstPeer, median, type BenchContext, type BenchRow } from '../rows.js';

const INTERVALS: readonly { readonly everyMs: number; readonly goalPercent: number }[] = [
  { everyMs: 10_000, goalPercent: 2 },
  { everyMs: 1_000, goalPercent: 5 },
  { everyMs: 200, goalPercent: 15 },
];

interface Load {
  readonly name: string;
  readonly start: () => Promise<LabMachine>;
  /** In the guest: prints how many operations it has done. */
  readonly count: string;
}

const LAB_LOAD: Load = {
  name: '512 MiB guest, small writes to memory',
  count: 'cat /tmp/operations',
  start: async () => {
    const machine = await LabMachine.start({ name: 'bench', memoryMib: 512, devices: ['net', 'balloon'] });
    await machine.guest('lab fill 128', 900_000);
    await machine.guest('lab operations');
    return machine;
  },
};

export async function* slowDownRows(context: BenchContext): AsyncGenerator<BenchRow> {
  for (const load of [LAB_LOAD]) yield* rowsOf(context, load);
}

async function* rowsOf(context: BenchContext, load: Load): AsyncGenerator<BenchRow> {
  context.progress(`slow-down: booting the guest (${load.name})`);
  const machine = await load.start();
  try {
    // Each interval on a session of its own: without one the guest's memory is not tracked at all.
    for (const { everyMs, goalPercent } of INTERVALS) {
      const turns = context.quick ? 1 : 5;
      const stretchMs = Math.max(5_000, everyMs);
      const rates = { alone: [] as number[], harvested: [] as number[], checkpointed: [] as number[] };
      for (let turn = 0; turn < turns; turn++) {
        context.progress(`slow-down: ${load.name}, every ${everyMs / 1000} s, turn ${turn + 1} of ${turns}`);
        rates.alone.push(await rate(machine, load, stretchMs, stretchMs, () => Promise.resolve()));
        rates.harvested.push(await harvested(machine, load, stretchMs, everyMs));
        rates.checkpointed.push(await checkpointed(machine, load, stretchMs, everyMs));
      }
      const row = {
        area: 'slow-down',
        workload: load.name,
        unit: '1/s',
        peer: 'no tracker, no checkpoints',
        peerValue: median(rates.alone),
      } as const;
      yield againstPeer(
        {
          ...row,
          name: `operations per second, a checkpoint every ${everyMs / 1000} s`,
          value: median(rates.checkpointed),
        },
        `at most ${goalPercent} % less`,
        (ratio) => ratio >= 1 - goalPercent / 100,
      );
      yield againstPeer({
        ...row,
        name: `operations per second, the tracker alone, harvested every ${everyMs / 1000} s`,
        value: median(rates.harvested),
      });
    }
  } finally {
    await machine.destroy();
  }
}

/** What write protection and its faults cost, with nothing copied and no pause. */
async function harvested(
  machine: LabMachine,
  load: Load,
  stretchMs: number,
  everyMs: number,
): Promise<number> {
  const vm = await hypervisors()
    .forAddress(machine.address)
    .attach(machine.address, { runtimeDir: mkdtempSync(join(machine.dir, 'run-')) });
  try {
    await vm.memoryLayout();
    const tracker = vm.tracker('pagemap-scan');
    await tracker.start();
    tracker.collect();
    const operations = await rate(machine, load, stretchMs, everyMs, () => {
      tracker.collect();
      return Promise.resolve();
    });
    await tracker.stop();
    return operations;
  } finally {
    await vm.close();
  }
}

async function checkpointed(
  machine: LabMachine,
  load: Load,
  stretchMs: number,
  everyMs: number,
): Promise<number> {
  const session = await CheckpointSession.open({
    repository: await Repository.init(openBackend(mkdtempSync(join(machine.dir, 'repo-')))),
    hypervisors: hypervisors(),
    vm: machine.address,
    memoryOnly: true,
  });
  try {
    await session.checkpoint();
    return await rate(machine, load, stretchMs, everyMs, () => session.checkpoint());
  } finally {
    await session.close();
    const vm = await hypervisors().forAddress(machine.address).attach(machine.address, {
      runtimeDir: defaultRuntimeDir(),
    });
    await vm.memoryLayout();
    const tracker = vm.tracker('pagemap-scan');
    await tracker.start();
    await tracker.stop();
    await vm.close();
  }
}

/** Operations per second over a stretch in which `work` is done every `everyMs`. */
async function rate(
  machine: LabMachine,
  load: Load,
  stretchMs: number,
  everyMs: number,
  work: () => Promise<unknown>,
): Promise<number> {
  const operations = async (): Promise<number> => Number(await machine.guest(load.count));
  const from = await operations();
  const started = Date.now();
  while (Date.now() - started < stretchMs) {
    const next = Date.now() + everyMs;
    await work();
    await sleep(Math.max(0, Math.min(next, started + stretchMs) - Date.now()));
  }
  const elapsed = Date.now() - started;
  return ((await operations()) - from) / (elapsed / 1000);
}
