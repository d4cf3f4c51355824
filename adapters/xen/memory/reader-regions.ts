/**
 * What the readers of guest memory in worker threads share: which frame a page is, and why one cannot be
 * read.
 */

import { CheckpointError } from '../../../src/errors.js';
import { errnoName } from '../../../src/ffi/libc.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES, countRunPages, type PageRuns } from '../../../src/types.js';
import type { XenVersion } from '../ffi/versions.js';
import { firstFrameOf } from '../domain/physmap.js';

export interface ReaderRegion {
  readonly firstPage: number;
  readonly pageCount: number;
  readonly firstFrame: number;
}

/** Options of a reader, as JSON for the worker thread. */
export interface ReaderOptions {
  readonly version: XenVersion;
  readonly domid: number;
  readonly regions: readonly ReaderRegion[];
}

const ESRCH = 3;

export function readerRegions(layout: MemoryLayout): readonly (ReaderRegion & Record<string, number>)[] {
  return layout.regions.map((region) => ({
    firstPage: region.firstPage,
    pageCount: region.pageCount,
    firstFrame: firstFrameOf(region),
  }));
}

/** Frames by page. Pages come in runs, so the region of the last one is tried first. */
export class FrameFinder {
  readonly #regions: readonly ReaderRegion[];
  #region: ReaderRegion | undefined;

  constructor(regions: readonly ReaderRegion[]) {
    this.#regions = regions;
  }

  frameOf(page: number): number {
    let region = this.#region;
    if (region === undefined || page < region.firstPage || page >= region.firstPage + region.pageCount) {
      region = this.#regions.find(
        ({ firstPage, pageCount }) => page >= firstPage && page < firstPage + pageCount,
      );
      if (region === undefined) throw new RangeError(`page ${page} is in no memory region`);
      this.#region = region;
    }
    return region.firstFrame + (page - region.firstPage);
  }
}

/** @returns how many pages they are. @throws RangeError when they do not fit */
export function checkedPageCount(runs: PageRuns, into: Uint8Array): number {
  const pageCount = countRunPages(runs);
  if (pageCount * PAGE_SIZE_BYTES <= into.length) return pageCount;
  throw new RangeError(`${pageCount} pages do not fit in ${into.length} bytes`);
}

export function unreadable(domid: number, errno: number): CheckpointError {
  if (errno === ESRCH)
    return new CheckpointError('VM_GONE', `domain ${domid} has ended while its memory was read`);
  const name = errnoName(errno);
  return new CheckpointError('VM_MEMORY_READ', `cannot map memory of domain ${domid}: ${name}`, {
    retryable: true,
    detail: { domid, errno: name },
  });
}
