/**
 * What a checkpoint far from its base costs to read, while real programs ran in the guest: CPU time, wall time, and what is
 * decompressed for each byte that is delivered. The peer is a base of the same guest, taken right after the last increment.
 * Pages that changed in many places are stored as patches against pages of other records, each of which has to be read as
 * well; small scattered writes, as in `chain.ts`, make next to none of these.
 */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import {
  hypervisors,
  openBackend,
  openSession,
  Repository,
  verify,
  type CheckpointSession,
  type Manifest,
} from '../../src/index.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import type { LabMachine } from '../../test/lab/machine.js';
import { againstPeer, type BenchContext, type BenchRow } from '../rows.js';
import {
  LAB_LOAD,
  startWorkloadGuest,
  workloadCache,
  WORKLOADS,
  type GuestLoad,
} from '../trace/workload-guest.js';

const AREA = 'chain';
const RANDOM_PAGES = 256;
const EVERY_MS = 500;
const MEBIBYTE = 1 << 20;
const MOST_TIMES_A_BASE = 2;
/** Those that store most patches come first: the budget may end the others. */
const FULL_WORKLOADS = ['archive', 'compile', 'sqlite', 'redis'];
const QUICK_WORKLOADS = ['redis'];

/** What one kind of reading takes. */
interface Cost {
  readonly cpuMs: number;
  readonly wallMs: number;
  readonly deliveredBytes: number;
  /** Bytes decompressed for each byte delivered. */
  readonly amplification: number;
  readonly framesPerMib: number;
}

export async function* chainLoadRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const lengths = context.quick ? [10, 35] : [35, 100];
  for (const load of loadsOf(context)) {
    if (context.timeIsUp()) return;
    context.progress(`chain-loads: booting the guest (${load.name})`);
    const machine = await load.start();
    try {
      yield* rowsOf(context, load.name, machine, lengths);
    } finally {
      await machine.discard();
    }
  }
}

async function* rowsOf(
  context: BenchContext,
  workload: string,
  machine: LabMachine,
  lengths: readonly number[],
): AsyncGenerator<BenchRow> {
  const repository = await Repository.init(openBackend(join(machine.dir, 'repo')));
  const open = (): Promise<CheckpointSession> =>
    openSession(hypervisors(), machine.address, { repository, memoryOnly: true });
  let session = await open();
  try {
    const ids: string[] = [];
    const longest = lengths.at(-1)!;
    for (let i = 0; i < longest; i++) {
      context.progress(`chain-loads: ${workload}, checkpoint ${i + 1} of ${longest}`);
      ids.push((await session.checkpoint()).checkpointId);
      await sleep(EVERY_MS);
    }
    const going = (await session.checkpoint()).totalMs;
    await session.close();
    context.progress(`chain-loads: ${workload}, the session anew`);
    session = await open();
    const again = (await session.checkpoint()).totalMs;
    yield againstPeer({
      area: AREA,
      name: `increment after the watcher was started again, total, at ${longest} checkpoints`,
      workload,
      unit: 'ms',
      value: again,
      peer: 'the one before, in a session that went on',
      peerValue: going,
    });
    const { checkpointId: baseId } = await session.checkpoint({ forceBase: true });
    const base = await repository.find(baseId);
    context.progress(`chain-loads: ${workload}, reading`);
    const peers = await costsOf(repository, base);
    for (const length of lengths) {
      const costs = await costsOf(repository, await repository.find(ids[length - 1]!));
      yield* readRows(`checkpoint ${length}`, workload, costs, peers);
    }
    if (context.timeIsUp()) return;
    context.progress(`chain-loads: ${workload}, verifying`);
    const before = process.cpuUsage();
    const { problems, records } = await verify(repository);
    if (problems.length > 0) throw new Error(`the chain is damaged: ${problems[0]!.message}`);
    yield againstPeer({
      area: AREA,
      name: `verify, CPU for all that is stored, ${longest} checkpoints and a base`,
      workload,
      unit: 'ms',
      value: cpuMsSince(before),
      peer: 'reading the base, for as many pages',
      peerValue: (peers.all.cpuMs * records * PAGE_SIZE_BYTES) / peers.all.deliveredBytes,
    });
  } finally {
    await session.close();
  }
}

interface Costs {
  readonly all: Cost;
  readonly some: Cost;
}

async function costsOf(repository: Repository, manifest: Manifest): Promise<Costs> {
  return {
    all: await costOf(repository, manifest, async (reader) => {
      let bytes = 0;
      for await (const chunk of reader.pagesAsStored()) bytes += chunk.bytes?.length ?? 0;
      return bytes;
    }),
    some: await costOf(repository, manifest, async (reader) => {
      const stored: number[] = [];
      for await (const { firstPage, refs } of reader.allRefs())
        for (const [i, ref] of refs.entries()) if (ref !== 0) stored.push(firstPage + i);
      // The same spread over what is not zero, at every length.
      const picked = Array.from(
        { length: RANDOM_PAGES },
        (_, i) => stored[(i * 2_654_435_761) % stored.length]!,
      );
      const pages = Uint32Array.from([...new Set(picked)].sort((a, b) => a - b));
      await reader.readPages(pages, new Uint8Array(pages.length * PAGE_SIZE_BYTES));
      return pages.length * PAGE_SIZE_BYTES;
    }),
  };
}

/** By a fresh reader: nothing is in its cache. @param read returns the bytes that were delivered */
async function costOf(
  repository: Repository,
  manifest: Manifest,
  read: (reader: ReturnType<Repository['reader']>) => Promise<number>,
): Promise<Cost> {
  const reader = repository.reader(manifest);
  await reader.index();
  const [cpu, wall] = [process.cpuUsage(), performance.now()];
  const bytes = await read(reader);
  const { decodedBytes, frames } = reader.effort;
  return {
    cpuMs: cpuMsSince(cpu),
    wallMs: performance.now() - wall,
    deliveredBytes: bytes,
    amplification: decodedBytes / bytes,
    framesPerMib: frames / (bytes / MEBIBYTE),
  };
}

function* readRows(what: string, workload: string, costs: Costs, peers: Costs): Generator<BenchRow> {
  for (const [kind, cost, base] of [
    ['all pages', costs.all, peers.all],
    [`${RANDOM_PAGES} random pages`, costs.some, peers.some],
  ] as const) {
    const row = { area: AREA, workload, peer: 'a base of the same guest' } as const;
    const of = (name: string, unit: string, value: number, peerValue: number): BenchRow =>
      againstPeer(
        { ...row, name: `${kind}, ${name}, ${what}`, unit, value, peerValue },
        `at most ${MOST_TIMES_A_BASE}x`,
        (ratio) => ratio <= MOST_TIMES_A_BASE,
      );
    yield of('CPU', 'ms', cost.cpuMs, base.cpuMs);
    yield of('wall', 'ms', cost.wallMs, base.wallMs);
    yield of('decompressed for each byte delivered', 'x', cost.amplification, base.amplification);
    yield of('frames decoded', 'frame/MiB', cost.framesPerMib, base.framesPerMib);
  }
}

function cpuMsSince(before: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
}

function loadsOf({ quick }: BenchContext): readonly GuestLoad[] {
  if (quick && !existsSync(join(workloadCache(), 'workloads/root.img'))) return [LAB_LOAD];
  return (quick ? QUICK_WORKLOADS : FULL_WORKLOADS).map((name) => {
    const workload = WORKLOADS.find((one) => one.name === name)!;
    return { name, start: () => startWorkloadGuest(workload) };
  });
}
