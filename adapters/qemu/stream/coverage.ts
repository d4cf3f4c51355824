/** Holds a page source to its promise: every page of every region exactly once, in order. */

import { CheckpointError } from '../../../src/errors.js';
import type { PageChunk } from '../../../src/hypervisor/restore.js';
import type { MemoryLayout, MemoryRegion } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';

export class CoverageCursor {
  readonly #layout: MemoryLayout;
  #regionIndex = 0;
  #nextPage = 0;

  constructor(layout: MemoryLayout) {
    this.#layout = layout;
    this.#nextPage = layout.regions[0]?.firstPage ?? 0;
  }

  /** The region that the chunk lies in. @throws REPO_DAMAGED when it is not the next one */
  accept(chunk: PageChunk): MemoryRegion {
    const region = this.#layout.regions[this.#regionIndex];
    if (region === undefined) throw uncovered(`page ${chunk.firstPage} lies past the last memory region`);
    if (chunk.firstPage !== this.#nextPage) {
      throw uncovered(
        `page ${this.#nextPage} of ${region.id} is missing, page ${chunk.firstPage} follows instead`,
      );
    }
    const end = chunk.firstPage + chunk.pageCount;
    const regionEnd = region.firstPage + region.pageCount;
    if (chunk.pageCount <= 0 || end > regionEnd)
      throw uncovered(`pages up to ${end} pass the end of ${region.id}`);
    if (chunk.bytes !== null && chunk.bytes.length !== chunk.pageCount * PAGE_SIZE_BYTES) {
      throw uncovered(`${chunk.bytes.length} bytes for ${chunk.pageCount} pages of ${region.id}`);
    }
    this.#nextPage = end;
    if (end === regionEnd) this.#nextPage = this.#layout.regions[++this.#regionIndex]?.firstPage ?? end;
    return region;
  }

  /** @throws REPO_DAMAGED when pages are missing at the end */
  finish(): void {
    const region = this.#layout.regions[this.#regionIndex];
    if (region !== undefined)
      throw uncovered(`page ${this.#nextPage} of ${region.id} and all after it are missing`);
  }
}

function uncovered(what: string): CheckpointError {
  return new CheckpointError('REPO_DAMAGED', `the checkpoint does not hold all memory: ${what}`);
}
