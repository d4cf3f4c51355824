/**
 * Which page goes out next: what the VM asks for before all else, then the pages that were written last, then all others
 * in the order of the repository.
 *
 *     requests ----> read, with some pages behind each ----.
 *                                                           >---- not sent before? ----> destination
 *     hot pages, then pages as stored ---- no request? ----'
 *
 * Every page that goes out was verified as it was read. One that cannot be read is never sent: who needs it waits. Pages
 * of zeros are sent only when they are asked for; when the stream ends, the kernel makes what is missing zero, so
 * it ends only when no other page is missing.
 */

import { setImmediate as turn, setTimeout as delay } from 'node:timers/promises';

import { type CheckpointError, isCheckpointError } from '../../../src/errors.js';
import type { PagedSource, PageServing } from '../../../src/hypervisor/page-serving.js';
import { regionOfPage, type MemoryRegion } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import type { Destination } from './destination.js';
import { faultStep } from './fault-steps.js';
import { Pace } from './pace.js';
import { PageRecords } from './page-records.js';
import type { SentPages } from './sent-pages.js';

/** With a page that is asked for come those behind it: 8 had a guest of 4 GiB at its first output about as soon as 64, 1 took twice as long. */
const PREFETCH_PAGES = 8;
/** Requests that are answered together: a processor has one at a time, so it is rarely more than a few. */
const MOST_REQUESTS = 32;
/** What goes out between two looks at the requests. */
const SLICE_PAGES = 32;
/** Damage is looked for in halves of so many pages. */
const SEARCH_PAGES = 256;
const RETRY_MS = 5000;

export interface PageFeedDeps {
  readonly source: PagedSource;
  readonly sent: SentPages;
  readonly destination: Pick<Destination, 'write' | 'below'>;
  readonly bytesPerSecond?: number | undefined;
  readonly report: PageServing['report'];
}

export class PageFeed {
  readonly #deps: PageFeedDeps;
  readonly #records = new PageRecords();
  readonly #pace: Pace;
  readonly #asked = new Set<number>();
  /** Asked for, and not to be read. */
  readonly #awaited = new Set<number>();
  readonly #unreadable = new Set<number>();
  #unreadableBecause: CheckpointError | undefined;
  #isAnswering = false;
  #isOver = false;
  #wake: () => void = () => undefined;
  #quiet: (() => void) | undefined;
  #storedSent = 0;

  constructor(deps: PageFeedDeps) {
    this.#deps = deps;
    this.#pace = new Pace(deps.bytesPerSecond);
    const { sent } = deps;
    if (sent.count > 0) for (const page of this.#storedPages()) if (sent.has(page)) this.#storedSent++;
  }

  /** Pages of the VM's memory that it waits for. */
  ask(firstPage: number, pageCount: number): void {
    for (let page = firstPage; page < firstPage + pageCount; page++) {
      if (this.#unreadable.has(page)) this.#await(page);
      else if (!this.#deps.sent.has(page)) this.#asked.add(page);
    }
    this.#wake();
  }

  /**
   * Answers requests until `end`. @throws what the source throws for a defect, and what the destination throws
   */
  async answer(): Promise<void> {
    for (;;) {
      while (this.#asked.size === 0) {
        this.#isAnswering = false;
        this.#quiet?.();
        await new Promise<void>((resolve) => (this.#wake = resolve));
        if (this.#isOver) return;
      }
      this.#isAnswering = true;
      const pages = [...this.#asked].slice(0, MOST_REQUESTS);
      for (const page of pages) this.#asked.delete(page);
      await this.#answerWith(pages);
    }
  }

  /** Sends all that is not zero, and stays at it as long as something cannot be read. */
  async push(): Promise<void> {
    const { source, sent } = this.#deps;
    for (let from = 0; from < source.hotPages.length; from += SLICE_PAGES) {
      const hot = source.hotPages.subarray(from, from + SLICE_PAGES).filter((page) => !sent.has(page));
      if (hot.length > 0 && !(await this.#pushRead(hot))) break;
    }
    // Chunks are of any length, many of a single page.
    const slice = { pages: [] as number[], bytes: new Uint8Array(SLICE_PAGES * PAGE_SIZE_BYTES) };
    const flush = async (): Promise<void> => {
      await this.#myTurn();
      this.#send(slice.pages, slice.bytes, true);
      slice.pages = [];
    };
    try {
      for await (const { firstPage, pageCount, bytes } of source.pagesAsStored()) {
        for (let i = 0; bytes !== null && i < pageCount; i++) {
          if (sent.has(firstPage + i)) continue;
          const at = slice.pages.length * PAGE_SIZE_BYTES;
          slice.bytes.set(bytes.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES), at);
          slice.pages.push(firstPage + i);
          if (slice.pages.length === SLICE_PAGES) await flush();
        }
      }
      await flush();
    } catch (error) {
      if (!isUnreadable(error)) throw error;
      await this.#pushRest();
    }
  }

  /** @returns the last bytes of the stream: nothing is sent after them */
  end(): Buffer {
    const { source } = this.#deps;
    if (this.#storedSent !== source.storedPages)
      throw new RangeError(`${source.storedPages - this.#storedSent} pages are missing at the end`);
    this.#isOver = true;
    this.#wake();
    return this.#records.end();
  }

  get donePages(): number {
    return this.#storedSent;
  }

  async #answerWith(pages: readonly number[]): Promise<void> {
    const { source, sent, destination } = this.#deps;
    const around = this.#withNext(pages);
    const zeros = around.filter((page) => !source.isStored(page));
    this.#send(zeros, null, false);
    const stored = around.filter((page) => source.isStored(page));
    faultStep();
    if (stored.length > 0) {
      const read = await this.#read(Uint32Array.from(stored));
      if (read !== undefined) this.#send(stored, read, false);
      else {
        for (const page of pages.filter((one) => source.isStored(one) && !sent.has(one))) {
          const alone = await this.#read(Uint32Array.of(page));
          if (alone !== undefined) this.#send([page], alone, false);
          else {
            this.#unreadable.add(page);
            this.#await(page);
          }
        }
      }
    }
    await destination.below(0);
    this.#progress();
  }

  /** Pages that are asked for with some that follow them, as far as they have not gone out; ascending. */
  #withNext(pages: readonly number[]): readonly number[] {
    const { source, sent } = this.#deps;
    const all = new Set<number>();
    for (const page of pages) {
      const region = regionOfPage(source.layout, page);
      if (region === undefined) continue;
      const end = Math.min(page + PREFETCH_PAGES, region.firstPage + region.pageCount);
      for (let next = page; next < end; next++)
        if (!sent.has(next) && !this.#unreadable.has(next)) all.add(next);
    }
    return [...all].sort((a, b) => a - b);
  }

  async #pushRest(): Promise<void> {
    const { sent } = this.#deps;
    for (;;) {
      const missing = this.#storedPages().filter((page) => !sent.has(page));
      this.#unreadable.clear();
      for (let from = 0; from < missing.length; from += SEARCH_PAGES)
        await this.#search(missing.subarray(from, from + SEARCH_PAGES));
      if (this.#unreadable.size === 0) return;
      this.#reportDamage();
      // Storage may come back. What is damaged stays so for this process, which keeps what it has read.
      do await delay(RETRY_MS);
      while (isCheckpointError(this.#unreadableBecause, 'REPO_DAMAGED'));
    }
  }

  /** Sends those of the pages that can be read. */
  async #search(pages: Uint32Array): Promise<void> {
    if (await this.#pushRead(pages)) return;
    if (pages.length === 1) {
      const [page] = pages;
      this.#unreadable.add(page!);
      if (this.#asked.delete(page!)) this.#awaited.add(page!);
      return;
    }
    const half = pages.length >>> 1;
    await this.#search(pages.subarray(0, half));
    await this.#search(pages.subarray(half));
  }

  /** @returns false when one of them cannot be read: then none was sent */
  async #pushRead(pages: Uint32Array): Promise<boolean> {
    await this.#myTurn();
    const read = await this.#read(pages);
    if (read === undefined) return false;
    await this.#myTurn();
    this.#send(pages, read, true);
    return true;
  }

  /** @returns undefined when one of them cannot be read */
  async #read(pages: Uint32Array): Promise<Uint8Array | undefined> {
    const into = new Uint8Array(pages.length * PAGE_SIZE_BYTES);
    try {
      await this.#deps.source.readPages(pages, into);
      return into;
    } catch (error) {
      if (!isUnreadable(error)) throw error;
      this.#unreadableBecause = error;
      return undefined;
    }
  }

  /** Once no request is open, the connection is empty, and the pace allows it. */
  async #myTurn(): Promise<void> {
    faultStep();
    await this.#pace.wait();
    do {
      // Requests are heard only between turns of the event loop.
      await turn();
      if (this.#asked.size > 0 || this.#isAnswering)
        await new Promise<void>((resolve) => (this.#quiet = resolve));
      await this.#deps.destination.below(0);
    } while (this.#asked.size > 0);
  }

  /** @param bytes of all the pages; null for zero pages */
  #send(pages: ArrayLike<number>, bytes: Uint8Array | null, isPaced: boolean): void {
    const { source, sent, destination } = this.#deps;
    const records: Buffer[] = [];
    let region: MemoryRegion | undefined;
    for (let i = 0; i < pages.length; i++) {
      const page = pages[i]!;
      if (sent.has(page)) continue;
      if (region === undefined || page < region.firstPage || page >= region.firstPage + region.pageCount)
        region = regionOfPage(source.layout, page);
      if (region === undefined) throw new RangeError(`page ${page} lies in no memory region`);
      sent.add(page);
      this.#awaited.delete(page);
      if (source.isStored(page)) this.#storedSent++;
      const at = i * PAGE_SIZE_BYTES;
      records.push(this.#records.encode(region, page, bytes?.subarray(at, at + PAGE_SIZE_BYTES) ?? null));
    }
    if (records.length === 0) return;
    const all = Buffer.concat(records);
    destination.write(all);
    if (!isPaced) return;
    this.#pace.took(all.length);
    this.#progress();
  }

  #progress(): void {
    this.#deps.report({ event: 'progress', donePages: this.#storedSent });
  }

  #await(page: number): void {
    const wasKnown = this.#awaited.size > 0;
    this.#awaited.add(page);
    if (!wasKnown) this.#reportDamage();
  }

  #reportDamage(): void {
    const error = this.#unreadableBecause;
    if (error === undefined) return;
    this.#deps.report({
      event: 'damaged',
      error: error.toJSON(),
      pages: this.#unreadable.size,
      isAwaited: this.#awaited.size > 0,
    });
  }

  #storedPages(): Uint32Array {
    const { source } = this.#deps;
    return Uint32Array.from(
      (function* () {
        for (const { firstPage, pageCount } of source.layout.regions)
          for (let page = firstPage; page < firstPage + pageCount; page++)
            if (source.isStored(page)) yield page;
      })(),
    );
  }
}

/** Anything that the repository or its storage says of what it holds. */
function isUnreadable(error: unknown): error is CheckpointError {
  return isCheckpointError(error) && UNREADABLE.has(error.code);
}

const UNREADABLE: ReadonlySet<string> = new Set([
  'REPO_DAMAGED',
  'CHECKPOINT_GONE',
  'STORAGE_NOT_FOUND',
  'STORAGE_IO',
  'STORAGE_RANGE',
]);
