/**
 * The hot loops over pages and bitmaps, as the rest of the core sees them.
 *
 * Everything lives in one linear memory and is named by byte offset ("pointer"). There are two
 * implementations with byte-identical results: WebAssembly with SIMD (`wasm.ts`) for use, plain TypeScript
 * (`scalar.ts`) to check it against. All calls are synchronous and must not be shared between threads: one
 * instance and one memory a thread.
 *
 * Arguments that do not fit the memory, or are not aligned (u32 arrays to 4, u64 words to 8, u16 arrays to
 * 2), throw RangeError before anything is touched. Regions of one call must not overlap unless said
 * otherwise.
 */

import { PAGE_SIZE_BYTES } from '../types.js';
import type { DecodeResult } from './decode-result.js';

/** Byte offset in the linear memory. */
export type Pointer = number;

/** Stands in `bases` for a page without previous contents: the whole page is wanted. */
export const BASE_NONE = 0;
/** Stands in `bases` for previous contents that are all zero. Real bases start at 2. */
export const BASE_ZERO_PAGE = 1;

/**
 * Most control bytes one page can need: runs lie at least 3 bytes apart, so a page has at most 1024 of them,
 * at two bytes each. A gap or length of two bytes takes the place of many runs.
 */
const MAX_CONTROL_BYTES_PER_PAGE = 2048;
/** Both streams are written in steps of up to 16 bytes, and so a little past their end. */
const STREAM_SLACK_BYTES = 16;

/** Bytes to set aside for the control stream of `pageCount` pages. */
export function controlCapacityBytes(pageCount: number): number {
  return pageCount * MAX_CONTROL_BYTES_PER_PAGE + STREAM_SLACK_BYTES;
}

/** Bytes to set aside for the data stream of `pageCount` pages. */
export function dataCapacityBytes(pageCount: number): number {
  return pageCount * PAGE_SIZE_BYTES + STREAM_SLACK_BYTES;
}

/** `scanEdges` looks at so many words in one step. */
export const SCAN_WORDS = 16;

/**
 * Bytes to set aside for the edges of `wordCount` words: one a bit, and up to three more are written past the
 * last.
 */
export function edgeCapacityBytes(wordCount: number): number {
  return (wordCount * 64 + 3) * 4;
}

/** Bytes of content that an anchor stands for; the last positions of a page are none for want of them. */
export const ANCHOR_SPAN_BYTES = 32;

/** Bytes to set aside for the anchors of a page: every position may be one. */
export const ANCHOR_CAPACITY_BYTES = (PAGE_SIZE_BYTES - ANCHOR_SPAN_BYTES) * 4;

/** One batch for `encodePages`; all pointers into the linear memory. */
export interface EncodeJob {
  readonly pageCount: number;
  /** In: `pageCount` pages, one after the other. */
  readonly newPages: Pointer;
  /** In: u32 for each page: BASE_NONE, BASE_ZERO_PAGE or the pointer of the page's previous contents. */
  readonly bases: Pointer;
  /** Out: u8 for each page, see `kernels/codec-ids.ts`. */
  readonly codecs: Pointer;
  /** Out: u16 for each page, its share of the control stream. */
  readonly controlLengths: Pointer;
  /** Out: u16 for each page, its share of the data stream. */
  readonly dataLengths: Pointer;
  /**
   * Out: `controlCapacityBytes(pageCount)` bytes. What lies past the stream's length afterwards is
   * unspecified.
   */
  readonly control: Pointer;
  /**
   * Out: `dataCapacityBytes(pageCount)` bytes. What lies past the stream's length afterwards is unspecified.
   */
  readonly data: Pointer;
  /** Out: two u32, the lengths of the control and the data stream; also returned. */
  readonly result: Pointer;
  /** Copy each page that changed over its base, so that the base is ready for the next checkpoint. */
  readonly updateBases: boolean;
}

export interface EncodeTotals {
  readonly controlBytes: number;
  readonly dataBytes: number;
}

/** Records for `decodePages`, laid out as `encodePages` leaves them; all pointers into the linear memory. */
export interface DecodeJob {
  readonly count: number;
  /** u8, u16, u16 for each record. */
  readonly codecs: Pointer;
  readonly controlLengths: Pointer;
  readonly dataLengths: Pointer;
  /** u32 for each record: pointer of the page it is applied to. */
  readonly pages: Pointer;
  readonly control: Pointer;
  readonly controlBytes: number;
  readonly data: Pointer;
  readonly dataBytes: number;
}

export interface DecodeOutcome {
  readonly result: DecodeResult;
  /** The first record that failed. */
  readonly record: number;
}

export interface Kernels {
  readonly kind: 'wasm' | 'scalar';
  /** The whole linear memory; ask again after `ensure`. */
  bytes(): Uint8Array;
  /**
   * Grows the linear memory to at least `sizeBytes` (up to 4 GiB less 64 KiB); makes earlier views invalid.
   */
  ensure(sizeBytes: number): void;

  /**
   * The edges of a bitmap, ascending, as u32 at `out`: where a run of set bits starts and the bit after its
   * end, in turns. An odd number of them so far means that the last run is still open.
   * @param bitmap little-endian u64 words, LSB first. The word before it is read too: when its last bit is
   *   set, a run goes on from there, and the first edge is its end
   * @param wordCount multiple of SCAN_WORDS
   * @param firstBit number of the first bit
   * @param out `edgeCapacityBytes(wordCount)`, all of which may be written
   * @returns number of edges
   */
  scanEdges(bitmap: Pointer, wordCount: number, firstBit: number, out: Pointer): number;
  /** Turns pairs of edges (start, end) into runs (first page, page count), in place. */
  edgesToRuns(edges: Pointer, runCount: number): void;
  /** Number of set bits. */
  popcount(bitmap: Pointer, wordCount: number): number;
  /** dst |= src. */
  orInto(dst: Pointer, src: Pointer, wordCount: number): void;
  /** Clears in dst the bits that are set in src. */
  andNot(dst: Pointer, src: Pointer, wordCount: number): void;

  /**
   * Encodes a batch. The records depend on page and base contents alone, see `kernels/codec-ids.ts`. Bases
   * may be shared between pages.
   */
  encodePages(job: EncodeJob): EncodeTotals;
  /**
   * Applies one record to the page at `page`, which holds the base for `runs` and `same`, anything for `zero`
   * and `raw`. Record and lengths are not trusted; nothing outside the page is written. After an error the
   * page's contents are unspecified.
   */
  decodeInto(
    codec: number,
    control: Pointer,
    controlLength: number,
    data: Pointer,
    dataLength: number,
    page: Pointer,
  ): DecodeResult;
  /**
   * Calls `decodeInto` for each record in turn; several records may name the same page. Stops at the first
   * that is malformed, or whose lengths lead past the end of a stream (RecordTooLong).
   */
  decodePages(job: DecodeJob): DecodeOutcome;
  /**
   * Sets bit i of `outBitmap` when page i is all zero, clears it when not; writes ceil(pageCount / 64) whole
   * words.
   */
  isZeroPages(pages: Pointer, pageCount: number, outBitmap: Pointer): void;

  /**
   * Anchors of a page's content: positions whose next 8 bytes hash to a value with the top seven bits zero
   * (one in 128), except where a word repeats. So pages that have content in common have anchors in common,
   * at whatever offset each has it.
   * @param out for each anchor, in order of position, the hash of the 32 bytes from it on as u32, never 0;
   *   ANCHOR_CAPACITY_BYTES
   * @returns number of anchors
   */
  findAnchors(page: Pointer, out: Pointer): number;

  /** XXH64. `seed` and result are unsigned 64-bit. */
  hash64(ptr: Pointer, lengthBytes: number, seed: bigint): bigint;
}
