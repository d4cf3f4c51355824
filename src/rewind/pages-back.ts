/** The pages of a rewind on their way from the repository to the guest. */

import { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import { chunkRuns } from '../bitmap/run-chunks.js';
import type { MemoryLayout } from '../hypervisor/memory-layout.js';
import type { PageMap } from '../repository/read/page-map.js';
import { ZERO_REF } from '../format/record-ref.js';
import { expandRuns, PAGE_SIZE_BYTES, type PageRuns } from '../types.js';
import { HeldPages, type ReadRecords } from './held-pages.js';

/** Pages that are read together in the pause, 32 MiB. */
const WINDOW_PAGES = 8192;
/**
 * A region up to this size, 1 MiB, may be one that loading a device state fills anew: firmware tables, option ROMs. Its
 * pages are read before the pause in case they are.
 */
const SMALL_PAGES = 256;

export interface PagesBackOptions {
  /** Of the checkpoint. */
  readonly map: PageMap;
  readonly layout: MemoryLayout;
  readonly heldBytes: number;
  readonly read: ReadRecords;
}

export type WritePages = (runs: PageRuns, bytes: Uint8Array | null) => void;

export class PagesBack {
  readonly map: PageMap;
  readonly #options: PagesBackOptions;
  readonly #held: HeldPages;
  /** Read in the pause, but before anything is written. */
  readonly #rest: HeldPages;
  readonly #small: HeldPages;
  /** Without memory behind them, so they read as zero. */
  #absent: DirtyBitmap;
  written = 0;
  readInPause = 0;

  constructor(options: PagesBackOptions) {
    const { map, read, heldBytes } = options;
    this.map = map;
    this.#options = options;
    this.#held = new HeldPages({ map, read, limitBytes: heldBytes });
    this.#rest = new HeldPages({ map, read, limitBytes: WINDOW_PAGES * PAGE_SIZE_BYTES });
    this.#small = new HeldPages({ map, read, limitBytes: Infinity });
    this.#absent = new DirtyBitmap(map.pageSpan);
  }

  addAll(pages: DirtyBitmap): void {
    for (const { firstPage, pageCount } of this.#options.layout.regions) pages.setRange(firstPage, pageCount);
  }

  async holdSmallRegions(): Promise<void> {
    const pages = new DirtyBitmap(this.map.pageSpan);
    for (const { firstPage, pageCount } of this.#options.layout.regions)
      if (pageCount <= SMALL_PAGES) pages.setRange(firstPage, pageCount);
    await this.#small.hold(pages);
  }

  /** Before the pause. @returns how many came */
  hold(pages: DirtyBitmap): Promise<number> {
    return this.#held.hold(pages);
  }

  /** Pages that there was no room for. */
  countBeyond(pages: DirtyBitmap): number {
    return this.#held.missingOf(pages).count();
  }

  /** In the pause, before anything is written: as many as a window has. What is beyond is read while the rest is written. */
  async holdRest(pages: DirtyBitmap): Promise<void> {
    const missing = this.#held.missingOf(pages);
    if (missing.isEmpty()) return;
    await this.#rest.hold(missing);
    this.readInPause += this.#rest.sizeBytes / PAGE_SIZE_BYTES;
  }

  /** These read as zero as they are; writing zeros would give them memory. */
  leaveOut(absent: DirtyBitmap): void {
    this.#absent = absent;
  }

  /** @param half called when some are written and others are not */
  async write(pages: DirtyBitmap, write: WritePages, half: () => void): Promise<void> {
    for (const { runs, bytes } of [...this.#held.batches(), ...this.#rest.batches()]) {
      write(runs, bytes);
      this.written += bytes.length / PAGE_SIZE_BYTES;
    }
    half();
    const zero = new DirtyBitmap(this.map.pageSpan);
    for (const page of expandRuns(pages.toRuns())) if (this.map.refOf(page) === ZERO_REF) zero.set(page);
    zero.andNot(this.#absent);
    write(zero.toRuns(), null);
    this.written += zero.count();
    await this.#writeUnheld(this.#rest.missingOf(this.#held.missingOf(pages)), write);
  }

  /** Pages that were rewritten since: mostly held, since they were written before or lie in a small region. */
  async writeAgain(pages: DirtyBitmap, write: WritePages): Promise<void> {
    const ready = new DirtyBitmap(this.map.pageSpan);
    const unready = new DirtyBitmap(this.map.pageSpan);
    for (const page of expandRuns(pages.toRuns())) {
      const isHeld = [this.#small, this.#held, this.#rest].some((held) => held.has(page));
      (isHeld || this.map.refOf(page) === ZERO_REF ? ready : unready).set(page);
    }
    for (const runs of chunkRuns(ready.toRuns(), WINDOW_PAGES)) {
      const some = expandRuns(runs);
      const bytes = new Uint8Array(some.length * PAGE_SIZE_BYTES);
      some.forEach((page, i) => this.#copy(page, bytes.subarray(i * PAGE_SIZE_BYTES)));
      write(runs, bytes);
      this.written += some.length;
    }
    await this.#writeUnheld(unready, write);
  }

  #copy(page: number, into: Uint8Array): void {
    for (const held of [this.#small, this.#held, this.#rest]) if (held.copy(page, into)) return;
    // A zero page that no set had: `into` is fresh.
  }

  async #writeUnheld(pages: DirtyBitmap, write: WritePages): Promise<void> {
    for (const runs of chunkRuns(pages.toRuns(), WINDOW_PAGES)) {
      const some = expandRuns(runs);
      const bytes = new Uint8Array(some.length * PAGE_SIZE_BYTES);
      await this.#options.read(this.map.refsOf(some), bytes);
      write(runs, bytes);
      this.written += some.length;
      this.readInPause += some.length;
    }
  }
}
