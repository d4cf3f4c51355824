/**
 * Slices of an index segment: entries of some pages in ascending order, compressed and checked as one piece,
 * so that a page is looked up without the rest of the index (docs/format.md, segments).
 *
 *     page indexes as differences in 4 planes | references as differences in 8 planes | depths
 */

import { createHash } from 'node:crypto';

import { describeError } from '../errors.js';
import { compress, decompress } from '../ffi/zstd.js';
import { damaged } from '../records/damage.js';
import { putDeltas32, putDeltas64, takeDeltas32, takeDeltas64 } from './byte-columns.js';
import { isRecordRef, MAX_DELTA_DEPTH, ZERO_REF } from './record-ref.js';

export interface IndexEntries {
  /** Strictly ascending. */
  readonly pages: Uint32Array;
  /** 0 = the page is zero, whatever older segments say. */
  readonly refs: Float64Array;
  readonly depths: Uint8Array;
}

/**
 * Entries of each slice but the last of a segment. 106 KB before compression, decoded in 0.2 ms; the
 * directory of the slices takes 24 bytes for so many pages.
 */
export const SLICE_ENTRIES = 8192;
export const ENTRY_BYTES = 13;
/** Of the SHA-256 of a slice. */
export const SLICE_CHECKSUM_BYTES = 16;

/** What the directory of a segment says of a slice, and what bounds its pages. */
export interface SlicePlace {
  readonly key: string;
  readonly number: number;
  readonly firstPage: number;
  /** First page of the next slice; for the last one, the page span. */
  readonly endPage: number;
  readonly entryCount: number;
  readonly checksum: Uint8Array;
}

/** @param level zstd level, 0 = off */
export function encodeSlice({ pages, refs, depths }: IndexEntries, level: number): Uint8Array {
  const body = new Uint8Array(pages.length * ENTRY_BYTES);
  let at = putDeltas32(body, 0, pages);
  at = putDeltas64(body, at, refs);
  body.set(depths, at);
  const packed = level > 0 ? compress(body, level) : body;
  return packed.length < body.length ? packed : body;
}

/** @throws REPO_DAMAGED */
export function decodeSlice(stored: Uint8Array, place: SlicePlace): IndexEntries {
  const { key, number, entryCount } = place;
  if (Buffer.compare(sliceChecksum(stored), place.checksum) !== 0)
    throw damaged(key, 'checksum of a slice of the index does not match', { slice: number });
  const rawBytes = entryCount * ENTRY_BYTES;
  const body = stored.length === rawBytes ? stored : inflate(stored, rawBytes, place);
  const entries: IndexEntries = {
    pages: takeDeltas32(body, 0, entryCount),
    refs: takeDeltas64(body, entryCount * 4, entryCount),
    depths: body.slice(entryCount * 12),
  };
  checkEntries(entries, place);
  return entries;
}

export function sliceChecksum(stored: Uint8Array): Buffer {
  return createHash('sha256').update(stored).digest().subarray(0, SLICE_CHECKSUM_BYTES);
}

function checkEntries({ pages, refs, depths }: IndexEntries, place: SlicePlace): void {
  const { key, number, firstPage, endPage } = place;
  const fail = (what: string, entry: number): never => {
    throw damaged(key, what, { slice: number, entry });
  };
  if (pages[0] !== firstPage) fail('a slice begins at another page than the directory says', 0);
  for (let i = 0; i < pages.length; i++) {
    if (i > 0 && pages[i]! <= pages[i - 1]!) fail('pages are not in ascending order', i);
    if (pages[i]! >= endPage) fail('page outside the memory, or of the next slice', i);
    const isZero = refs[i] === ZERO_REF && depths[i] === 0;
    if (!isZero && !(isRecordRef(refs[i]!) && depths[i]! <= MAX_DELTA_DEPTH))
      fail('reference or depth out of bounds', i);
  }
}

function inflate(stored: Uint8Array, rawBytes: number, { key, number }: SlicePlace): Uint8Array {
  try {
    return decompress(stored, rawBytes);
  } catch (cause) {
    throw damaged(key, `slice does not decompress (${describeError(cause)})`, { slice: number }, cause);
  }
}
