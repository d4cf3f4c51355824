/**
 * The pages a checkpoint still owes a copy, fed by harvests.
 *
 * `absent` pages have no memory behind them: they are recorded as zero without being read. A page that a
 * later harvest reports again takes that harvest's word on whether it is there.
 */

import { DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import type { Harvest } from '../../hypervisor/dirty-tracker.js';
import type { MemoryLayout } from '../../hypervisor/memory-layout.js';
import { chunkRuns } from '../../bitmap/run-chunks.js';
import { countRunPages, expandRuns, type PageRuns } from '../../types.js';

export interface TakenPages {
  /** Pages to be copied. */
  readonly present: PageRuns;
  readonly presentCount: number;
}

export class PendingPages {
  readonly #pending: DirtyBitmap;
  readonly #absent: DirtyBitmap;
  /** Everything harvested since the checkpoint began: what must be put back if it fails. */
  readonly harvested: DirtyBitmap;
  /** Everything taken so far, each page once. */
  readonly #touched: DirtyBitmap;
  /** Pages that were taken and of which the last word is that no memory is behind them. */
  readonly #takenAbsent: DirtyBitmap;

  constructor(pageSpan: number) {
    this.#pending = new DirtyBitmap(pageSpan);
    this.#absent = new DirtyBitmap(pageSpan);
    this.harvested = new DirtyBitmap(pageSpan);
    this.#touched = new DirtyBitmap(pageSpan);
    this.#takenAbsent = new DirtyBitmap(pageSpan);
  }

  add(harvest: Harvest): void {
    const dirty = harvest.dirty.toRuns();
    this.harvested.setRuns(dirty);
    this.#pending.setRuns(dirty);
    this.#absent.clearRuns(dirty);
    // A ballooned guest may have very many small runs of them.
    this.#absent.or(harvest.absent);
  }

  /** Every page of every region. */
  addAll(layout: MemoryLayout): void {
    for (const region of layout.regions) this.#pending.setRange(region.firstPage, region.pageCount);
  }

  get count(): number {
    return this.#pending.count();
  }

  /** Distinct pages taken over all rounds. */
  get touchedCount(): number {
    return this.#touched.count();
  }

  /** Up to `pageCount` of the pages that are to be copied, nothing is taken. */
  sample(pageCount: number): PageRuns {
    for (const first of chunkRuns(this.present(), pageCount)) return first;
    return new Uint32Array(0);
  }

  /** Pages that are to be copied, as far as is known; nothing is taken. */
  present(): PageRuns {
    const present = this.#pending.clone();
    present.andNot(this.#absent);
    return present.toRuns();
  }

  /**
   * Pages to be recorded as zero, once everything that was taken is written: the last harvest that reported
   * them found no memory behind them.
   */
  absentPages(): Uint32Array {
    return expandRuns(this.#takenAbsent.toRuns());
  }

  /** Hands over all that is pending and starts empty again. */
  take(): TakenPages {
    const all = this.#pending.toRuns();
    this.#touched.setRuns(all);
    this.#pending.andNot(this.#absent);
    const present = this.#pending.toRuns();
    this.#pending.setRuns(all);
    this.#pending.clearRuns(present);
    const absent = this.#pending.toRuns();
    this.#pending.clearRuns(absent);
    this.#absent.clear();
    this.#takenAbsent.clearRuns(present);
    this.#takenAbsent.setRuns(absent);
    return { present, presentCount: countRunPages(present) };
  }
}
