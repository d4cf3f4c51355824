/**
 * Records what a running VM writes: lets it run for an epoch, pauses it, harvests and reads the dirty pages,
 * and hands on their contents before and after. The VM stands still while an epoch is handed on, so that an
 * epoch is the time it ran, however slow the consumer is.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { performance } from 'node:perf_hooks';

import { DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import type { DirtyTracker } from '../../hypervisor/dirty-tracker.js';
import type { GuestReader, GuestReaderModule } from '../../hypervisor/guest-reader.js';
import type { MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { Vm } from '../../hypervisor/vm.js';
import { chunkRuns } from '../../bitmap/run-chunks.js';
import { countRunPages, expandRuns, PAGE_SIZE_BYTES, type PageRuns } from '../../types.js';

/** One epoch as it was recorded. */
export interface RecordedEpoch {
  /** For which the guest ran. */
  readonly runMs: number;
  /** All pages that became dirty, ascending. */
  readonly pages: Uint32Array;
  /** 1 for each of `pages` whose contents follow. */
  readonly hasContent: Uint8Array;
  /** 4096 bytes for each page with contents, in order: before the epoch, after it. Not kept. */
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

export interface RecordOptions {
  readonly epochMs: number;
  readonly epochs: number;
  /**
   * Contents are kept of at most about this many pages an epoch: of whole stretches of 64 pages, chosen by
   * page index alone, so that neighbours stay together and a page is kept again and again.
   */
  readonly maxContentPages: number;
  readonly signal?: AbortSignal | undefined;
}

/** The consumer of an epoch has this long, and all memory is read in the first pause. */
const EPOCH_LIMIT_MS = 60_000;
const SLOWEST_READ_BYTES_PER_MS = 131_072;

/** Pages read from the guest at a time. */
const READ_PAGES = 4096;
const STRETCH_PAGES = 64;
const HASH = 0x9e3779b1;

/**
 * Holds a copy of all guest memory meanwhile. The VM is in the run state it was found in afterwards, on every
 * path.
 * @param tracker started; whoever counts on it otherwise must not at the same time
 * @throws what VM and tracker throw
 */
export async function* recordEpochs(
  vm: Vm,
  layout: MemoryLayout,
  tracker: DirtyTracker,
  options: RecordOptions,
): AsyncGenerator<RecordedEpoch> {
  const { moduleUrl, options: readerOptions } = vm.memory.reader();
  const reader = ((await import(moduleUrl)) as GuestReaderModule).openGuestReader(readerOptions);
  const wasRunning = (await vm.runState.read()) === 'running';
  try {
    await vm.runState.pause({ limitMs: EPOCH_LIMIT_MS + layout.sizeBytes / SLOWEST_READ_BYTES_PER_MS });
    const memory = new MemoryCopy(layout, reader);
    memory.readAll(tracker);
    let stretches = 1;
    for (let epoch = 0; epoch < options.epochs; epoch++) {
      options.signal?.throwIfAborted();
      const started = performance.now();
      await vm.runState.resume();
      await sleep(Math.max(0, options.epochMs - (performance.now() - started)));
      await vm.runState.pause({ limitMs: EPOCH_LIMIT_MS });
      const runMs = performance.now() - started;
      const { dirty, absent } = tracker.collect();
      const pages = expandRuns(dirty.toRuns());
      // Once the sample had to be thinned it stays so: otherwise pages would come and go.
      while (countKept(pages, stretches) > options.maxContentPages) stretches *= 2;
      yield { runMs, pages, ...memory.advance(dirty, absent, pages, stretches) };
    }
  } finally {
    reader.close();
    if (wasRunning) await vm.runState.resume();
  }
}

function isKept(page: number, stretches: number): boolean {
  if (stretches === 1) return true;
  const stretch = Math.floor(page / STRETCH_PAGES);
  return (Math.imul(stretch, HASH) >>> 0) % stretches === 0;
}

function countKept(pages: Uint32Array, stretches: number): number {
  return pages.reduce((sum, page) => sum + (isKept(page, stretches) ? 1 : 0), 0);
}

/** Guest memory as it was at the end of the last epoch. */
class MemoryCopy {
  readonly #reader: GuestReader;
  readonly #layout: MemoryLayout;
  readonly #bytes: Buffer;

  constructor(layout: MemoryLayout, reader: GuestReader) {
    this.#layout = layout;
    this.#reader = reader;
    this.#bytes = Buffer.alloc(layout.pageSpan * PAGE_SIZE_BYTES);
  }

  readAll(tracker: DirtyTracker): void {
    const { absent } = tracker.collect();
    const all = new DirtyBitmap(this.#layout.pageSpan);
    for (const region of this.#layout.regions) all.setRange(region.firstPage, region.pageCount);
    all.andNot(absent);
    this.#read(all.toRuns(), (page, bytes) => bytes.copy(this.#bytes, page * PAGE_SIZE_BYTES));
  }

  /**
   * Contents of the kept ones of `pages` before and after, and the copy brought up to date for all of them.
   */
  advance(
    dirty: DirtyBitmap,
    absent: DirtyBitmap,
    pages: Uint32Array,
    stretches: number,
  ): Omit<RecordedEpoch, 'runMs' | 'pages'> {
    const present = dirty.clone();
    present.andNot(absent);
    const hasContent = Uint8Array.from(pages, (page) => (isKept(page, stretches) ? 1 : 0));
    const kept = pages.filter((_, i) => hasContent[i] === 1);
    const before = this.#gather(kept);
    dirty.andNot(present);
    for (const page of expandRuns(dirty.toRuns()))
      this.#bytes.fill(0, page * PAGE_SIZE_BYTES, (page + 1) * PAGE_SIZE_BYTES);
    this.#read(present.toRuns(), (page, bytes) => bytes.copy(this.#bytes, page * PAGE_SIZE_BYTES));
    return { hasContent, before, after: this.#gather(kept) };
  }

  #gather(pages: Uint32Array): Uint8Array {
    const bytes = new Uint8Array(pages.length * PAGE_SIZE_BYTES);
    pages.forEach((page, i) => {
      const at = page * PAGE_SIZE_BYTES;
      bytes.set(this.#bytes.subarray(at, at + PAGE_SIZE_BYTES), i * PAGE_SIZE_BYTES);
    });
    return bytes;
  }

  /** Reads `runs` and visits them a stretch of pages at a time. */
  #read(runs: PageRuns, visit: (page: number, bytes: Buffer) => void): void {
    const buffer = Buffer.alloc(READ_PAGES * PAGE_SIZE_BYTES);
    for (const batch of chunkRuns(runs, READ_PAGES)) {
      this.#reader.readRuns(batch, buffer.subarray(0, countRunPages(batch) * PAGE_SIZE_BYTES));
      let at = 0;
      for (let i = 0; i < batch.length; i += 2) {
        const end = at + batch[i + 1]! * PAGE_SIZE_BYTES;
        visit(batch[i]!, buffer.subarray(at, end));
        at = end;
      }
    }
  }
}
