/**
 * Linear memory of one share, laid out once; the room for captured pages grows. All values are byte offsets.
 *
 *     | scratch of one encode batch | gather | provided bases | previous versions | captured pages ... |
 *
 * The budget for previous versions is address space, not memory: what no page was ever put into is never
 * touched.
 */

import { ANCHOR_CAPACITY_BYTES, controlCapacityBytes, dataCapacityBytes } from '../kernels/kernels.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import { ENCODE_BATCH_PAGES } from './messages.js';

const BATCH_BYTES = ENCODE_BATCH_PAGES * PAGE_SIZE_BYTES;
/** WebAssembly memory ends at 4 GiB; half a GiB is kept for captured pages. */
const MOST_CACHE_BYTES = 3 * 2 ** 30;

export interface Arena {
  readonly bases: number;
  readonly codecs: number;
  readonly controlLengths: number;
  readonly dataLengths: number;
  readonly result: number;
  readonly hashes: number;
  readonly anchors: number;
  readonly control: number;
  readonly data: number;
  readonly gather: number;
  readonly provided: number;
  readonly cache: number;
  readonly cachePages: number;
  readonly captured: number;
}

export function layOutArena(cacheBytes: number): Arena {
  // Offset 0 stays unused, because the base pointers 0 and 1 have meanings of their own.
  let next = PAGE_SIZE_BYTES;
  const take = (sizeBytes: number): number => {
    const at = next;
    next = Math.ceil((at + sizeBytes) / PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES;
    return at;
  };
  const cachePages = Math.floor(Math.min(cacheBytes, MOST_CACHE_BYTES) / PAGE_SIZE_BYTES);
  return {
    bases: take(ENCODE_BATCH_PAGES * 4),
    codecs: take(ENCODE_BATCH_PAGES),
    controlLengths: take(ENCODE_BATCH_PAGES * 2),
    dataLengths: take(ENCODE_BATCH_PAGES * 2),
    result: take(16),
    hashes: take(ENCODE_BATCH_PAGES * 8),
    anchors: take(ANCHOR_CAPACITY_BYTES),
    control: take(controlCapacityBytes(ENCODE_BATCH_PAGES)),
    data: take(dataCapacityBytes(ENCODE_BATCH_PAGES)),
    gather: take(BATCH_BYTES),
    provided: take(BATCH_BYTES),
    cache: take(cachePages * PAGE_SIZE_BYTES),
    cachePages,
    captured: next,
  };
}
