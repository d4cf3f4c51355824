/** Reading from long chains: whole checkpoints and random pages, at growing distance from the base. */

import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import { openBackend, Repository, type CheckpointSummary, type Manifest } from '../../src/index.js';
import { MAX_DELTA_DEPTH } from '../../src/format/record-ref.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { LiveGuest } from '../live-guest.js';
import { againstPeer, alone, median, type BenchContext, type BenchRow } from '../rows.js';

const RANDOM_PAGES = 256;
const REPETITIONS = 7;

export async function* chainRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const lengths = context.quick ? [1, 10, 100] : [1, 10, 100, 1000];
  const longest = lengths.at(-1)!;
  const lastCount = Math.min(50, longest / 4);
  const workload = '512 MiB guest, scattered small writes and runs of 64 KiB';
  const area = 'chain' as const;
  context.progress('chain: booting a guest');
  const guest = await LiveGuest.start({ memoryMib: 512, fillMib: 256, session: { maxPauseMs: 20 } });
  try {
    await guest.machine.guest('lab memory 32');
    const taken: CheckpointSummary[] = [];
    for (let i = 0; i < longest; i++) {
      context.progress(`chain: checkpoint ${i + 1} of ${longest}`);
      taken.push(await guest.session.checkpoint());
      await sleep(50);
    }
    const repository = await Repository.open(openBackend(guest.repo));
    const manifests: Manifest[] = [];
    for (const length of lengths) manifests.push(await repository.find(taken[length - 1]!.checkpointId));
    context.progress('chain: reading');
    const allMs = await mediansMs(manifests, (manifest) => readAll(repository, manifest));
    const pagesMs = await mediansMs(manifests, (manifest) => readRandomPages(repository, manifest));
    const kinds = [
      ['all pages', allMs],
      [`${RANDOM_PAGES} random pages`, pagesMs],
    ] as const;
    for (const [i, length] of lengths.entries()) {
      for (const [what, times] of kinds) {
        const row = {
          area,
          name: `${what}, chain of ${length}`,
          workload,
          unit: 'ms',
          value: times[i]!,
        } as const;
        const goal = 'at most 1.3x';
        if (i === 0) yield alone(row);
        else
          yield againstPeer(
            { ...row, peer: `chain of ${lengths[0]!}`, peerValue: times[0]! },
            goal,
            (ratio) => ratio <= 1.3,
          );
      }
    }
    yield* regroupingRows(taken.slice(1), { area, workload });
    const stored = taken.map(({ storedBytes, regroupedBytes }) => storedBytes - regroupedBytes);
    const pauses = taken.map(({ pauseMs }) => pauseMs);
    // The first increments lie below the bound on deltas per page: none of them stores a page whole for its sake.
    const early = stored.slice(1, MAX_DELTA_DEPTH + 1);
    const late = stored.slice(MAX_DELTA_DEPTH + 1);
    if (late.length > 0) {
      yield againstPeer({
        area,
        name: `increment, stored: what bounding a page to ${MAX_DELTA_DEPTH} deltas costs`,
        workload,
        unit: 'bytes',
        value: mean(late),
        peer: `the first ${MAX_DELTA_DEPTH} increments, below the bound`,
        peerValue: mean(early),
      });
    }
    // Going back to the bottom and regrouping come after the VM runs: the pause must not show them.
    yield againstPeer({
      area,
      name: `pause of the last ${lastCount} increments`,
      workload,
      unit: 'ms',
      value: median(pauses.slice(-lastCount)),
      peer: `pause of the first ${lastCount}`,
      peerValue: median(pauses.slice(1, 1 + lastCount)),
    });
  } finally {
    await guest.destroy();
  }
}

/** What regrouping adds to increments: exactly, since each says how much of it there was. */
function* regroupingRows(
  increments: readonly CheckpointSummary[],
  common: Pick<BenchRow, 'area' | 'workload'>,
): Generator<BenchRow> {
  const peer = 'the same without regrouping';
  const total = (of: (summary: CheckpointSummary) => number): number =>
    increments.reduce((sum, summary) => sum + of(summary), 0);
  yield againstPeer(
    {
      ...common,
      name: 'increments, stored',
      unit: 'bytes',
      value: total(({ storedBytes }) => storedBytes),
      peer,
      peerValue: total(({ storedBytes, regroupedBytes }) => storedBytes - regroupedBytes),
    },
    'at most 1.25x on each of three levels',
    (ratio) => ratio <= 1.25 ** 3,
  );
  const totals = increments.map(({ totalMs }) => totalMs);
  const without = increments.map(({ totalMs, regroupMs }) => totalMs - regroupMs);
  for (const [name, of] of [
    ['increment, total, mean', mean],
    ['increment, total, longest', (values: readonly number[]) => Math.max(...values)],
  ] as const)
    yield againstPeer({ ...common, name, unit: 'ms', value: of(totals), peer, peerValue: of(without) });
  yield alone({
    ...common,
    name: 'longest regrouping',
    unit: 'ms',
    value: Math.max(...increments.map(({ regroupMs }) => regroupMs)),
  });
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

async function readAll(repository: Repository, manifest: Manifest): Promise<void> {
  for await (const chunk of repository.reader(manifest).pages())
    if (chunk.pageCount === 0) throw new Error('empty chunk');
}

/** A fresh reader each time: nothing is in its cache. */
async function readRandomPages(repository: Repository, manifest: Manifest): Promise<void> {
  const pageCount = manifest.layout.regions[0]!.pageCount;
  // The same spread of pages at every length.
  const pages = Uint32Array.from({ length: RANDOM_PAGES }, (_, i) => (i * 2_654_435_761) % pageCount).sort();
  await repository.reader(manifest).readPages(pages, new Uint8Array(RANDOM_PAGES * PAGE_SIZE_BYTES));
}

/** Each checkpoint in turn, again and again: all see the same noise. */
async function mediansMs(
  manifests: readonly Manifest[],
  work: (manifest: Manifest) => Promise<void>,
): Promise<readonly number[]> {
  const times = manifests.map((): number[] => []);
  for (let i = 0; i < REPETITIONS; i++) {
    for (const [k, manifest] of manifests.entries()) {
      const started = performance.now();
      await work(manifest);
      times[k]!.push(performance.now() - started);
    }
  }
  return times.map(median);
}
