/**
 * Frames of patched pages (docs/format.md, patch frames): pages that changed so much that runs of bytes say
 * little. zstd compresses them as one piece, and may refer to the contents of other records, the sources.
 *
 *     header, 64 bytes  24 2 source count | 26 2 zero | 28 4 length of the columns as stored
 *     columns           one zstd frame: 4n page indexes, 8m sources; both ascending, as differences in planes
 *     pages             one zstd frame with the m sources' pages as prefix: the n pages
 */

import { CODEC_RAW } from '../kernels/codec-ids.js';
import { describeError } from '../errors.js';
import { compress, compressWithPrefix, decompress, decompressWithPrefix } from '../ffi/zstd.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import { putDeltas32, putDeltas64, takeDeltas32, takeDeltas64 } from './byte-columns.js';
import { damaged } from '../records/damage.js';
import {
  checkFrame,
  ENTROPY_ZSTD,
  FRAME_HEADER_BYTES,
  FRAME_KIND_PATCH,
  sealFrame,
  type EncodedFrame,
  type PageRecords,
} from './frame.js';
import { MAX_PATCH_RECORDS, MAX_PATCH_SOURCES } from './frame-limits.js';
import type { FramePlace } from './frame-place.js';
import { frameKey, frameKeyOfRef, isRecordRef } from './record-ref.js';

export interface PatchInput {
  /** Strictly ascending. */
  readonly pages: Uint32Array;
  /** 4096 bytes for each of `pages`. */
  readonly contents: Uint8Array;
  /** Records that the contents are held against, strictly ascending. */
  readonly sources: Float64Array;
  /** 4096 bytes for each of `sources`. */
  readonly prefix: Uint8Array;
  /** The depth of all records of the frame: 0 without sources, otherwise one more than the deepest source. */
  readonly depth: number;
  /** The digest that `FrameRecords` describes. */
  readonly digest: bigint;
}

/** What a patch frame says before its sources are known. */
export interface Patch {
  readonly pages: Uint32Array;
  readonly sources: Float64Array;
  readonly digest: bigint;
  /** The compressed pages. */
  readonly packed: Uint8Array;
}

/** @param level zstd level, at least 1 @throws RangeError when there are too many pages or sources */
export function encodePatchFrame(input: PatchInput, level: number): EncodedFrame {
  const { pages, contents, sources, prefix, depth, digest } = input;
  if (pages.length < 1 || pages.length > MAX_PATCH_RECORDS || sources.length > MAX_PATCH_SOURCES)
    throw new RangeError(`patch of ${pages.length} pages against ${sources.length}`);
  if (
    contents.length !== pages.length * PAGE_SIZE_BYTES ||
    prefix.length !== sources.length * PAGE_SIZE_BYTES
  )
    throw new RangeError('patch: contents of a wrong length');
  const raw = new Uint8Array(pages.length * 4 + sources.length * 8);
  putDeltas64(raw, putDeltas32(raw, 0, pages), sources);
  const columns = compress(raw, level);
  const packed = compressWithPrefix(contents, prefix, level);
  const body = new Uint8Array(columns.length + packed.length);
  body.set(columns);
  body.set(packed, columns.length);
  const rawBytes = raw.length + contents.length;
  return {
    kind: FRAME_KIND_PATCH,
    bytes: sealFrame({
      kind: FRAME_KIND_PATCH,
      entropy: ENTROPY_ZSTD,
      recordCount: pages.length,
      rawBytes,
      digest,
      sourceCount: sources.length,
      columnBytes: columns.length,
      body,
    }),
    pages,
    codecs: new Uint8Array(pages.length).fill(CODEC_RAW),
    baseRefs: new Float64Array(pages.length),
    sources,
    depths: new Uint8Array(pages.length).fill(depth),
    rawBytes,
  };
}

/** Reads all but the pages. @param packSeq of the pack that the frame lies in @throws REPO_DAMAGED */
export function readPatch(bytes: Uint8Array, packSeq: number, place: FramePlace): Patch {
  const fail = (what: string, cause?: unknown): Error =>
    damaged(place.key, what, { frame: place.frame }, cause);
  const header = checkFrame(bytes, place);
  const { recordCount, sourceCount, columnBytes } = header;
  if (header.kind !== FRAME_KIND_PATCH) throw fail('not a frame of patched pages');
  const columnsEnd = FRAME_HEADER_BYTES + columnBytes;
  let raw: Uint8Array;
  try {
    raw = decompress(bytes.subarray(FRAME_HEADER_BYTES, columnsEnd), recordCount * 4 + sourceCount * 8);
  } catch (cause) {
    throw fail(`columns do not decompress (${describeError(cause)})`, cause);
  }
  const pages = takeDeltas32(raw, 0, recordCount);
  const sources = takeDeltas64(raw, recordCount * 4, sourceCount);
  const own = frameKey(packSeq, place.frame);
  for (let i = 1; i < recordCount; i++)
    if (pages[i]! <= pages[i - 1]!) throw fail('pages are not in ascending order');
  for (let i = 0; i < sourceCount; i++) {
    if (!isRecordRef(sources[i]!)) throw fail('source reference is out of bounds');
    if (i > 0 && sources[i]! <= sources[i - 1]!) throw fail('sources are not in ascending order');
    if (frameKeyOfRef(sources[i]!) >= own) throw fail('a source does not lie before the frame');
  }
  return { pages, sources, digest: header.digest, packed: bytes.subarray(columnsEnd) };
}

/** @param prefix the sources' pages, in order @returns the pages as whole ones @throws REPO_DAMAGED */
export function unpackPatch(
  { pages, digest, packed }: Patch,
  prefix: Uint8Array,
  place: FramePlace,
): PageRecords {
  const count = pages.length;
  let body: Uint8Array;
  try {
    body = decompressWithPrefix(packed, prefix, count * PAGE_SIZE_BYTES);
  } catch (cause) {
    const what = `pages do not decompress (${describeError(cause)})`;
    throw damaged(place.key, what, { frame: place.frame }, cause);
  }
  return {
    count,
    pages,
    codecs: new Uint8Array(count).fill(CODEC_RAW),
    baseRefs: new Float64Array(count),
    controlOffsets: new Uint32Array(count + 1),
    dataOffsets: Uint32Array.from({ length: count + 1 }, (_, i) => i * PAGE_SIZE_BYTES),
    body,
    digest,
  };
}
