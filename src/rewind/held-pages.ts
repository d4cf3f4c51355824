/**
 * Pages of a checkpoint that were read before the pause, so that the pause holds writes only. Bounded: what is beyond
 * the bound is read in the pause.
 */

import { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import type { PageMap } from '../repository/read/page-map.js';
import { ZERO_REF } from '../format/record-ref.js';
import { expandRuns, PAGE_SIZE_BYTES, type PageRuns } from '../types.js';

/** Reads records, in the order of `refs`, 4096 bytes each. */
export type ReadRecords = (refs: Float64Array, into: Uint8Array) => Promise<void>;

/** Pages that were read together. */
interface Batch {
  /** Ascending. */
  readonly pages: Uint32Array;
  readonly runs: PageRuns;
  /** The pages of `runs`, one after the other. */
  readonly bytes: Uint8Array;
}

export interface HeldPagesOptions {
  /** Of the checkpoint. */
  readonly map: PageMap;
  readonly read: ReadRecords;
  readonly limitBytes: number;
}

export class HeldPages {
  readonly #options: HeldPagesOptions;
  readonly #batches: Batch[] = [];
  /** Those held, and zero pages, which take no room. */
  readonly #known: DirtyBitmap;
  #bytes = 0;

  constructor(options: HeldPagesOptions) {
    this.#options = options;
    this.#known = new DirtyBitmap(options.map.pageSpan);
  }

  get sizeBytes(): number {
    return this.#bytes;
  }

  /**
   * Reads those of `pages` that are not known yet, as far as there is room.
   * @returns how many it has read or taken note of
   */
  async hold(pages: DirtyBitmap): Promise<number> {
    const { map, read, limitBytes } = this.#options;
    const fresh = pages.clone();
    fresh.andNot(this.#known);
    const room = Math.floor((limitBytes - this.#bytes) / PAGE_SIZE_BYTES);
    const all = expandRuns(fresh.toRuns());
    const stored = all.filter((page) => map.refOf(page) !== ZERO_REF);
    for (const page of stored.subarray(room)) fresh.clearRange(page, 1);
    this.#known.or(fresh);
    const taken = stored.subarray(0, room);
    if (taken.length > 0) {
      const bytes = new Uint8Array(taken.length * PAGE_SIZE_BYTES);
      await read(map.refsOf(taken), bytes);
      this.#bytes += bytes.length;
      const runs = DirtyBitmap.fromRuns(map.pageSpan, pairsOf(taken)).toRuns();
      this.#batches.push({ pages: taken, runs, bytes });
    }
    return taken.length + all.length - stored.length;
  }

  /** Whether the page is zero in the checkpoint, or held. */
  has(page: number): boolean {
    return this.#known.has(page);
  }

  /** What is not held. Caller owns it. */
  missingOf(pages: DirtyBitmap): DirtyBitmap {
    const missing = pages.clone();
    missing.andNot(this.#known);
    return missing;
  }

  /** Everything that is held, batch by batch. */
  batches(): readonly { readonly runs: PageRuns; readonly bytes: Uint8Array }[] {
    return this.#batches;
  }

  /** @returns false when the page is not held; one that is zero in the checkpoint counts as held */
  copy(page: number, into: Uint8Array): boolean {
    if (!this.#known.has(page)) return false;
    for (const { pages, bytes } of this.#batches) {
      const slot = slotOf(pages, page);
      if (slot === undefined) continue;
      into.set(bytes.subarray(slot * PAGE_SIZE_BYTES, (slot + 1) * PAGE_SIZE_BYTES));
      return true;
    }
    into.fill(0, 0, PAGE_SIZE_BYTES);
    return true;
  }
}

function pairsOf(pages: Uint32Array): PageRuns {
  const runs = new Uint32Array(pages.length * 2);
  for (let i = 0; i < pages.length; i++) {
    runs[i * 2] = pages[i]!;
    runs[i * 2 + 1] = 1;
  }
  return runs;
}

function slotOf(pages: Uint32Array, page: number): number | undefined {
  let [from, to] = [0, pages.length];
  while (from < to) {
    const middle = (from + to) >>> 1;
    if (pages[middle]! < page) from = middle + 1;
    else to = middle;
  }
  return pages[from] === page ? from : undefined;
}
