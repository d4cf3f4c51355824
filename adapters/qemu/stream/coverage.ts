/** Holds a page source to its promise: every page of every region exactly once. */

import { CheckpointError } from '../../../src/errors.js';
import type { PageChunk } from '../../../src/hypervisor/restore.js';
import { regionOfPage, type MemoryLayout, type MemoryRegion } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';

export class Coverage {
  readonly #layout: MemoryLayout;
  readonly #isCovered: Uint8Array;

  constructor(layout: MemoryLayout) {
    this.#layout = layout;
    this.#isCovered = new Uint8Array(layout.pageSpan);
  }

  /** The region that the chunk lies in. @throws REPO_DAMAGED when it lies in none, or comes again */
  accept({ firstPage, pageCount, bytes }: PageChunk): MemoryRegion {
    const region = regionOfPage(this.#layout, firstPage);
    if (region === undefined) throw uncovered(`page ${firstPage} lies in no memory region`);
    const end = firstPage + pageCount;
    if (pageCount <= 0 || end > region.firstPage + region.pageCount)
      throw uncovered(`pages up to ${end} pass the end of ${region.id}`);
    if (bytes !== null && bytes.length !== pageCount * PAGE_SIZE_BYTES)
      throw uncovered(`${bytes.length} bytes for ${pageCount} pages of ${region.id}`);
    const again = this.#isCovered.subarray(firstPage, end).indexOf(1);
    if (again >= 0) throw uncovered(`page ${firstPage + again} of ${region.id} comes twice`);
    this.#isCovered.fill(1, firstPage, end);
    return region;
  }

  /** @throws REPO_DAMAGED when pages are missing at the end */
  finish(): void {
    for (const { id, firstPage, pageCount } of this.#layout.regions) {
      const missing = this.#isCovered.subarray(firstPage, firstPage + pageCount).indexOf(0);
      if (missing >= 0) throw uncovered(`page ${firstPage + missing} of ${id} is missing`);
    }
  }
}

function uncovered(what: string): CheckpointError {
  return new CheckpointError('REPO_DAMAGED', `the checkpoint does not hold all memory: ${what}`);
}
