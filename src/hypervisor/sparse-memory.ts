/**
 * How much memory a machine out of a file or a stream may claim beyond the pages that have come. Pages may be missing: a
 * guest has named them as free, or given them back. But what is kept for each page of a memory (bitmaps, a map, the length
 * of a sparse file) must not be asked for by a few bytes that speak of terabytes.
 *
 *     pages claimed:  | free: 16 GiB           | 256 for each page that has come     | refused
 */

import { CheckpointError } from '../errors.js';
import { formatBytes } from '../text.js';
import { PAGE_SIZE_BYTES } from '../types.js';

/** 16 GiB: half a MiB a bitmap, and 36 MiB of a map that is not touched where there is nothing. */
const FREE_PAGES = 2 ** 22;
/** A guest that uses 4 GiB of a TiB passes. A page of zeros takes 9 bytes of a stream. */
const PAGES_FOR_EACH = 256;

/** Whether the page may come next, or the memory end there, when `arrivedPages` have come. */
export function isJustified(page: number, arrivedPages: number): boolean {
  return page <= FREE_PAGES + arrivedPages * PAGES_FOR_EACH;
}

/** @throws STREAM_MALFORMED when hardly anything of the memory has come */
export function refuseHollow(claimedPages: number, arrivedPages: number): void {
  if (arrivedPages > 0 && isJustified(claimedPages, arrivedPages)) return;
  throw hollow(claimedPages, arrivedPages);
}

export function hollow(claimedPages: number, arrivedPages: number): CheckpointError {
  const [claimed, arrived] = [claimedPages, arrivedPages].map((count) =>
    formatBytes(count * PAGE_SIZE_BYTES),
  );
  return new CheckpointError(
    'STREAM_MALFORMED',
    `the input speaks of ${claimed ?? ''} of memory and holds ${arrived ?? ''} of it`,
    { hint: 'the file or stream is cut off or damaged: have the hypervisor write it once more' },
  );
}
