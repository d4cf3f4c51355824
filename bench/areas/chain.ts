/** Reading from long chains: whole checkpoints and random pages, at growing distance from the base. */

import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import { openBackend, Repository, type Manifest } from '../../src/index.js';
import { MAX_DELTA_DEPTH } from '../../src/repository/record-ref.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { LiveGuest } from '../live-guest.js';
import { againstPeer, alone, median, type BenchContext, type BenchRow } from '../rows.js';

const RANDOM_PAGES = 256;
const REPETITIONS = 5;

export async function* chainRows(context: BenchContext): AsyncGenerator<BenchRow> {
  const lengths = context.quick ? [1, 10, 100] : [1, 10, 100, 1000];
  const longest = lengths.at(-1)!;
  const lastCount = Math.min(50, longest / 4);
  const workload = '512 MiB guest, scattered small writes and runs of 64 KiB';
  const area = 'chain';
  context.progress('chain: booting a guest');
  const guest = await LiveGuest.start({ memoryMib: 512, fillMib: 256, session: { maxPauseMs: 20 } });
  try {
    await guest.machine.guest('lab memory 32');
    const stored: number[] = [];
    const pauses: number[] = [];
    const ids: string[] = [];
    for (let i = 0; i < longest; i++) {
      context.progress(`chain: checkpoint ${i + 1} of ${longest}`);
      const summary = await guest.session.checkpoint();
      ids.push(summary.checkpointId);
      stored.push(summary.storedBytes);
      pauses.push(summary.pauseMs);
      await sleep(50);
    }
    const repository = await Repository.open(openBackend(guest.repo));
    let first: { readonly allMs: number; readonly pagesMs: number } | undefined;
    for (const length of lengths) {
      context.progress(`chain: reading at length ${length}`);
      const manifest = await repository.find(ids[length - 1]!);
      const allMs = await medianMs(() => readAll(repository, manifest));
      const pagesMs = await medianMs(() => readRandomPages(repository, manifest));
      if (first === undefined) {
        first = { allMs, pagesMs };
        yield alone({ area, name: `all pages, chain of ${length}`, workload, unit: 'ms', value: allMs });
        yield alone({
          area,
          name: `${RANDOM_PAGES} random pages, chain of ${length}`,
          workload,
          unit: 'ms',
          value: pagesMs,
        });
        continue;
      }
      const peer = `chain of ${lengths[0]!}`;
      yield againstPeer(
        {
          area,
          name: `all pages, chain of ${length}`,
          workload,
          unit: 'ms',
          value: allMs,
          peer,
          peerValue: first.allMs,
        },
        'at most 1.3x',
        (ratio) => ratio <= 1.3,
      );
      yield againstPeer(
        {
          area,
          name: `${RANDOM_PAGES} random pages, chain of ${length}`,
          workload,
          unit: 'ms',
          value: pagesMs,
          peer,
          peerValue: first.pagesMs,
        },
        'at most 1.3x',
        (ratio) => ratio <= 1.3,
      );
    }
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
    // Pages are stored whole again while encoding, after the VM runs: the pause must not show it.
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

async function medianMs(work: () => Promise<void>): Promise<number> {
  const times: number[] = [];
  for (let i = 0; i < REPETITIONS; i++) {
    const started = performance.now();
    await work();
    times.push(performance.now() - started);
  }
  return median(times);
}
