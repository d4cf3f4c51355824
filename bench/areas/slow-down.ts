/**
 * What checkpoints cost the guest: operations per second inside it, with a checkpoint every so often and with the tracker alone
 * being harvested, against the same guest without any of it. Stretches take turns, since nobody has this machine to himself.
 *
 * The guests run under emulation on the cores that Cairn runs on, so the figures hold both what a guest on a host with
 * free cores would feel as well (the pause, the faults of write protection) and what Cairn's own work takes from it. Two rows beside
 * tell these apart: the share of time in which the VM stood still, and the CPU time of Cairn.
 */

import { existsSync, mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import { defaultRuntimeDir } from '../../src/host/runtime-dir.js';
import { hypervisors, openBackend, openSession, Repository } from '../../src/index.js';
import type { LabMachine } from '../../test/lab/machine.js';
import { againstPeer, alone, median, type BenchContext, type BenchRow } from '../rows.js';
import {
  LAB_LOAD,
  operationsCommand,
  startWorkloadGuest,
  workloadCache,
  WORKLOADS,
  type GuestLoad,
} from '../trace/workload-guest.js';

interface Interval {
  readonly everyMs: number;
  readonly goalPercent: number;
  readonly stretchMs: number;
}

const INTERVALS: readonly Interval[] = [
  { everyMs: 10_000, goalPercent: 2, stretchMs: 10_000 },
  { everyMs: 1_000, goalPercent: 5, stretchMs: 5_000 },
  { everyMs: 200, goalPercent: 15, stretchMs: 4_000 },
];
const ALONE_MS = 4_000;
const HARVEST_EVERY_MS = 1_000;
const TURNS = 3;
/** Of a quick run. */
const QUICK_WORKLOADS = ['redis'];

interface Load extends GuestLoad {
  readonly operation: string;
  /** In the guest: prints how many operations it has done. */
  readonly count: string;
}

const SMALL_FILES: Load = { ...LAB_LOAD, operation: 'file', count: 'cat /tmp/operations' };

/** Rates of one load, operations per second, one a stretch. */
interface Rates {
  readonly alone: number[];
  readonly harvested: number[];
  readonly checkpointed: ReadonlyMap<Interval, CheckpointedStretch[]>;
}

interface CheckpointedStretch {
  readonly rate: number;
  /** Shares of the stretch: the VM stood still; CPU time of this process. */
  readonly pausedShare: number;
  readonly cpuShare: number;
}

export async function* slowDownRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const loads = loadsOf(context);
  const ratios = new Map<Interval, number[]>(INTERVALS.map((interval) => [interval, []]));
  for (const [i, load] of loads.entries()) {
    const rates = await measure(context, load, (i + 1) / loads.length);
    const unloaded = median(rates.alone);
    const row = { area: 'slow-down', workload: load.name } as const;
    const against = {
      ...row,
      unit: `${load.operation}/s`,
      peer: 'no tracker, no checkpoints',
      peerValue: unloaded,
    };
    for (const [interval, stretches] of rates.checkpointed) {
      const { goalPercent } = interval;
      const every = `a checkpoint every ${interval.everyMs / 1000} s`;
      const value = median(stretches.map(({ rate }) => rate));
      ratios.get(interval)!.push(value / unloaded);
      yield againstPeer(
        { ...against, name: `operations per second, ${every}`, value },
        `at most ${goalPercent} % less`,
        (ratio) => ratio >= 1 - goalPercent / 100,
      );
      const percent = (name: string, shares: readonly number[]): BenchRow =>
        alone({ ...row, unit: '%', name, value: median(shares) * 100 });
      yield percent(
        `time paused, ${every}`,
        stretches.map(({ pausedShare }) => pausedShare),
      );
      yield percent(
        `CPU time of Cairn, of one core, ${every}`,
        stretches.map(({ cpuShare }) => cpuShare),
      );
    }
    yield againstPeer({
      ...against,
      name: `operations per second, the tracker alone, harvested every ${HARVEST_EVERY_MS / 1000} s`,
      value: median(rates.harvested),
    });
  }
  for (const [{ everyMs, goalPercent }, of] of ratios) {
    yield alone(
      {
        area: 'slow-down',
        name: `operations per second lost, a checkpoint every ${everyMs / 1000} s`,
        workload: `median of ${of.length} workloads`,
        unit: '%',
        value: (1 - median(of)) * 100,
      },
      `at most ${goalPercent} %`,
      (value) => value <= goalPercent,
    );
  }
}

function loadsOf({ quick }: BenchContext): readonly Load[] {
  if (quick && !existsSync(join(workloadCache(), 'workloads/root.img'))) return [SMALL_FILES];
  return WORKLOADS.flatMap((workload) => {
    const { name, operation } = workload;
    if (operation === undefined || (quick && !QUICK_WORKLOADS.includes(name))) return [];
    const start = (): Promise<LabMachine> => startWorkloadGuest(workload, { steady: true });
    return [{ name, operation, count: operationsCommand(workload), start }];
  });
}

/** @param share of the budget at the end of this load */
async function measure(context: BenchContext, load: Load, share: number): Promise<Rates> {
  context.progress(`slow-down: booting the guest (${load.name})`);
  const machine = await load.start();
  const rates: Rates = {
    alone: [],
    harvested: [],
    checkpointed: new Map(INTERVALS.map((interval) => [interval, []])),
  };
  try {
    const turns = context.quick ? 1 : TURNS;
    for (let turn = 0; turn < turns && !(turn > 0 && context.timeIsUp(share)); turn++) {
      const say = (what: string): void =>
        context.progress(`slow-down: ${load.name}, turn ${turn + 1} of ${turns}, ${what}`);
      const nothing = async (): Promise<void> => {
        say('no checkpoints');
        rates.alone.push(await rate(machine, load, ALONE_MS, ALONE_MS, () => Promise.resolve()));
      };
      await nothing();
      await checkpointed(machine, load, rates, say);
      await nothing();
      say('the tracker alone');
      rates.harvested.push(await harvested(machine, load));
    }
    return rates;
  } finally {
    await machine.discard();
  }
}

/** What write protection and its faults cost, with nothing copied and no pause. */
async function harvested(machine: LabMachine, load: Load): Promise<number> {
  const vm = await hypervisors()
    .forAddress(machine.address)
    .attach(machine.address, { runtimeDir: mkdtempSync(join(machine.dir, 'run-')) });
  try {
    await vm.memory.layout();
    const tracker = vm.memory.tracker('pagemap-scan');
    await tracker.start();
    tracker.collect();
    const operations = await rate(machine, load, ALONE_MS, HARVEST_EVERY_MS, () => {
      tracker.collect();
      return Promise.resolve();
    });
    await tracker.stop();
    return operations;
  } finally {
    await vm.close();
  }
}

/** All intervals on one session; afterwards the guest's memory is not tracked any more. */
async function checkpointed(
  machine: LabMachine,
  load: Load,
  rates: Rates,
  say: (what: string) => void,
): Promise<void> {
  say('base');
  const session = await openSession(hypervisors(), machine.address, {
    repository: await Repository.init(openBackend(mkdtempSync(join(machine.dir, 'repo-')))),
    memoryOnly: true,
  });
  try {
    await session.checkpoint();
    // Makes the caches what they are after a while: what was never dirty before is read from the repository once.
    for (let i = 0; i < 3; i++) await session.checkpoint();
    for (const [{ everyMs, stretchMs }, stretches] of rates.checkpointed) {
      say(`a checkpoint every ${everyMs / 1000} s`);
      let pausedMs = 0;
      const from = performance.now();
      const { user, system } = process.cpuUsage();
      const operations = await rate(machine, load, stretchMs, everyMs, async () => {
        pausedMs += (await session.checkpoint()).pauseMs;
      });
      const elapsedMs = performance.now() - from;
      const used = process.cpuUsage();
      stretches.push({
        rate: operations,
        pausedShare: pausedMs / elapsedMs,
        cpuShare: (used.user - user + used.system - system) / 1000 / elapsedMs,
      });
    }
  } finally {
    await session.close();
    const vm = await hypervisors().forAddress(machine.address).attach(machine.address, {
      runtimeDir: defaultRuntimeDir(),
    });
    await vm.memory.layout();
    const tracker = vm.memory.tracker('pagemap-scan');
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
  const started = performance.now();
  while (performance.now() - started < stretchMs) {
    const next = performance.now() + everyMs;
    await work();
    await sleep(Math.max(0, Math.min(next, started + stretchMs) - performance.now()));
  }
  const done = (await operations()) - from;
  return done / ((performance.now() - started) / 1000);
}
