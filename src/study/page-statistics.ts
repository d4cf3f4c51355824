/**
 * The study of dirty pages: how many an epoch has, how much of a dirty page really changed and where in the
 * page, how long the changed stretches are, and after how many epochs a page is dirty again.
 */

import { PAGE_SIZE_BYTES } from '../types.js';
import { DoublingHistogram, type Bin } from './histogram.js';
import type { ObservedEpoch } from './subject.js';

/** Places in a page that are told apart. */
const POSITIONS = 64;
const POSITION_BYTES = PAGE_SIZE_BYTES / POSITIONS;

export interface EpochFigures {
  /** Running time from the beginning of the first epoch to the end of this one. */
  readonly endMs: number;
  readonly dirtyPages: number;
  /** Pages whose contents are known; `changedPages` of them hold something else than before. */
  readonly contentPages: number;
  readonly changedPages: number;
  readonly changedBytes: number;
}

export interface PageStatistics {
  readonly epochs: readonly EpochFigures[];
  /** Distinct pages that were dirty at all. */
  readonly distinctPages: number;
  /** Changed bytes of a dirty page; 0 for a page written with what it held. */
  readonly changedBytesPerPage: readonly Bin[];
  readonly meanChangedBytes: number;
  /** Share of dirty pages with a change, for each of 64 stretches of 64 bytes. */
  readonly positions: readonly number[];
  /** Lengths in bytes of stretches of changed bytes in a page. */
  readonly changeRunBytes: readonly Bin[];
  /** Lengths in pages of stretches of neighbouring dirty pages. */
  readonly pageRuns: readonly Bin[];
  /** Epochs since a dirty page was dirty before, 1 = in the epoch before. */
  readonly reDirtyEpochs: readonly Bin[];
  /** Pages dirty for the first time, over all epochs. */
  readonly firstTimePages: number;
}

export class PageStudy {
  readonly #epochs: EpochFigures[] = [];
  readonly #lastDirty = new Map<number, number>();
  readonly #changedBytes = new DoublingHistogram();
  readonly #positions = new Array<number>(POSITIONS).fill(0);
  readonly #changeRuns = new DoublingHistogram();
  readonly #pageRuns = new DoublingHistogram();
  readonly #reDirty = new DoublingHistogram();
  #contentPages = 0;
  #endMs = 0;

  add(epoch: ObservedEpoch): void {
    this.#endMs += epoch.runMs;
    this.#addPages(epoch.pages);
    let changedPages = 0;
    let changedBytes = 0;
    for (let i = 0; i < epoch.contentPages.length; i++) {
      const from = i * PAGE_SIZE_BYTES;
      const to = from + PAGE_SIZE_BYTES;
      const changed = this.#addContent(epoch.before.subarray(from, to), epoch.after.subarray(from, to));
      if (changed > 0) changedPages++;
      changedBytes += changed;
    }
    this.#contentPages += epoch.contentPages.length;
    this.#epochs.push({
      endMs: this.#endMs,
      dirtyPages: epoch.pages.length,
      contentPages: epoch.contentPages.length,
      changedPages,
      changedBytes,
    });
  }

  result(): PageStatistics {
    return {
      epochs: this.#epochs,
      distinctPages: this.#lastDirty.size,
      changedBytesPerPage: this.#changedBytes.bins(),
      meanChangedBytes: this.#changedBytes.mean,
      positions: this.#positions.map((count) => (this.#contentPages === 0 ? 0 : count / this.#contentPages)),
      changeRunBytes: this.#changeRuns.bins(),
      pageRuns: this.#pageRuns.bins(),
      reDirtyEpochs: this.#reDirty.bins(),
      firstTimePages: this.#lastDirty.size,
    };
  }

  #addPages(pages: Uint32Array): void {
    const now = this.#epochs.length;
    let runLength = 0;
    pages.forEach((page, i) => {
      const before = this.#lastDirty.get(page);
      if (before !== undefined) this.#reDirty.add(now - before);
      this.#lastDirty.set(page, now);
      runLength++;
      if (pages[i + 1] === page + 1) return;
      this.#pageRuns.add(runLength);
      runLength = 0;
    });
  }

  /** @returns changed bytes */
  #addContent(before: Uint8Array, after: Uint8Array): number {
    let changed = 0;
    let runLength = 0;
    let marked = -1;
    for (let at = 0; at < PAGE_SIZE_BYTES; at++) {
      if (before[at] === after[at]) {
        if (runLength > 0) this.#changeRuns.add(runLength);
        runLength = 0;
        continue;
      }
      changed++;
      runLength++;
      const position = Math.floor(at / POSITION_BYTES);
      if (position === marked) continue;
      this.#positions[position]! += 1;
      marked = position;
    }
    if (runLength > 0) this.#changeRuns.add(runLength);
    this.#changedBytes.add(changed);
    return changed;
  }
}
