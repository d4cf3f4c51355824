/**
 * The first look of a scan, on several threads: it walks all page tables of the guest, 0.2 to 0.5 ms a GiB,
 * inside the pause. It changes nothing, so a part that a thread does not deliver is simply looked at again
 * here.
 *
 * The harvest is synchronous, so the threads are handed their parts through shared memory and are waited for
 * with `Atomics.wait`; between harvests they sleep. A guest below `BYTES_PER_THREAD` needs none.
 */

import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';

import { writtenSpans, type Span } from '../../memory/pagemap.js';

/** A thread costs some 10 MiB of memory and 0.05 ms to wake. */
const BYTES_PER_THREAD = 2 * 2 ** 30;
const MOST_THREADS = 7;
/** What a page table maps: no two threads walk the same one. */
const TABLE_BYTES = 2 ** 21;
/** Far more than any scan takes: whoever is late is not asked again. */
const LATE_AFTER_MS = 1000;

/** A thread reports no more; what lies beyond comes in one with the last. */
export const MAX_SPANS = 8192;

/** Words of `FinderMemory.control`. */
export const CONTROL = { state: 0, spanCount: 1, words: 2 } as const;
/** `starting` until the thread runs, `failed` when its part must be looked at again. */
export const STATE = { starting: 0, idle: 1, asked: 2, done: 3, failed: 4, ended: 5 } as const;

/** Shared by the harvest and one thread. */
export interface FinderMemory {
  readonly control: Int32Array;
  /** Descriptor of the pagemap, start and end. */
  readonly question: Float64Array;
  /** Start and end of each span. */
  readonly spans: Float64Array;
}

export interface SpanFinderOptions {
  /** Size of the guest's memory. */
  readonly sizeBytes: number;
  /** Default: by the size of the guest and the processors of the host. */
  readonly threads?: number;
}

export class SpanFinder {
  readonly #memories: FinderMemory[] = [];

  constructor({ sizeBytes, threads }: SpanFinderOptions) {
    const useful = Math.min(
      Math.floor(sizeBytes / BYTES_PER_THREAD),
      availableParallelism() - 1,
      MOST_THREADS,
    );
    for (let i = 0; i < (threads ?? useful); i++) this.#memories.push(startThread());
  }

  /** How many threads could take a part now. */
  get readyThreads(): number {
    return this.#memories.filter(isReady).length;
  }

  /** Finds what `writtenSpans` finds. */
  find(pagemap: number, start: number, end: number): readonly Span[] {
    const helpers = this.#memories.filter(isReady);
    const parts = partsOf(start, end, helpers.length + 1);
    const others = parts.slice(1).map((part, i) => ({ memory: helpers[i]!, part }));
    for (const { memory, part } of others) ask(memory, pagemap, part);
    const answers: (readonly Span[] | undefined)[] = [];
    let found: readonly Span[];
    try {
      found = parts.slice(0, 1).flatMap((part) => writtenSpans(pagemap, ...part));
    } finally {
      // Whatever became of the first part: a thread that is not heard is not ready the next time.
      for (const { memory } of others) answers.push(answerOf(memory));
    }
    return found.concat(...others.map(({ part }, i) => answers[i] ?? writtenSpans(pagemap, ...part)));
  }

  close(): void {
    for (const { control } of this.#memories.splice(0)) {
      Atomics.store(control, CONTROL.state, STATE.ended);
      Atomics.notify(control, CONTROL.state);
    }
  }
}

function startThread(): FinderMemory {
  const memory: FinderMemory = {
    control: new Int32Array(new SharedArrayBuffer(CONTROL.words * 4)),
    question: new Float64Array(new SharedArrayBuffer(3 * 8)),
    spans: new Float64Array(new SharedArrayBuffer(MAX_SPANS * 2 * 8)),
  };
  const worker = new Worker(new URL('./span-finder-main.js', import.meta.url), { workerData: memory });
  // A worker that fails never gets ready, or is late once and not asked again.
  worker.on('error', () => Atomics.store(memory.control, CONTROL.state, STATE.ended));
  worker.unref();
  return memory;
}

function isReady({ control }: FinderMemory): boolean {
  return Atomics.load(control, CONTROL.state) === STATE.idle;
}

function ask({ control, question }: FinderMemory, pagemap: number, [start, end]: Span): void {
  question.set([pagemap, start, end]);
  Atomics.store(control, CONTROL.state, STATE.asked);
  Atomics.notify(control, CONTROL.state);
}

/**
 * Undefined when the part must be looked at again. A late thread is told to end, and so is never ready again.
 */
function answerOf({ control, spans }: FinderMemory): readonly Span[] | undefined {
  if (Atomics.wait(control, CONTROL.state, STATE.asked, LATE_AFTER_MS) === 'timed-out') {
    Atomics.store(control, CONTROL.state, STATE.ended);
    return undefined;
  }
  const state = Atomics.load(control, CONTROL.state);
  if (state === STATE.ended) return undefined;
  const count = control[CONTROL.spanCount]!;
  const found = Array.from({ length: count }, (_, i): Span => [spans[2 * i]!, spans[2 * i + 1]!]);
  Atomics.store(control, CONTROL.state, STATE.idle);
  Atomics.notify(control, CONTROL.state);
  return state === STATE.done ? found : undefined;
}

/** Cuts a range into at most `count` about equal parts that meet at the borders of page tables. */
function partsOf(start: number, end: number, count: number): readonly Span[] {
  const parts: Span[] = [];
  let from = start;
  for (let i = 1; i <= count; i++) {
    const cut = start + ((end - start) / count) * i;
    const to = i === count ? end : Math.floor(cut / TABLE_BYTES) * TABLE_BYTES;
    if (to <= from) continue;
    parts.push([from, to]);
    from = to;
  }
  return parts;
}
