/**
 * Frames of patched pages (docs/format.md, patch frames): pages that changed so much that runs of bytes say
 * little. zstd compresses them as one piece, and may refer to the contents of other records, the sources.
 *
 *     header, 64 bytes  24 2 source count | 26 2 count of blank records | 28 4 length of the columns as stored
 *     columns           one zstd frame: 4n page indexes, 8m sources, ascending, as differences in planes; 2b numbers of
 *                       blank records, ascending, in planes
 *     pages             one zstd frame with the m sources' pages as prefix: the n pages
 */

import { CODEC_RAW, CODEC_RUNS } from '../kernels/codec-ids.js';
import { describeError } from '../errors.js';
import {
  compress,
  compressWithPrefix,
  decompress,
  decompressWithPrefix,
  decompressWithPrefixAsync,
} from '../ffi/zstd.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import {
  putDeltas32,
  putDeltas64,
  putPlanes,
  takeDeltas32,
  takeDeltas64,
  takePlanes,
} from './byte-columns.js';
import { damaged } from '../records/damage.js';
import { BLANK_CONTROL, BLANK_DATA } from './blank-record.js';
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
  /** Records that nobody needs, ascending; their contents are zero. Default none. */
  readonly blanks?: Uint16Array;
}

/** What a patch frame says before its sources are known. */
export interface Patch {
  readonly pages: Uint32Array;
  readonly sources: Float64Array;
  /** Records that were given up, ascending. */
  readonly blanks: Uint32Array;
  readonly digest: bigint;
  /** The compressed pages. */
  readonly packed: Uint8Array;
}

/** @param level zstd level, at least 1 @throws RangeError when there are too many pages or sources */
export function encodePatchFrame(input: PatchInput, level: number): EncodedFrame {
  const { pages, contents, sources, prefix, depth, digest, blanks = new Uint16Array(0) } = input;
  if (pages.length < 1 || pages.length > MAX_PATCH_RECORDS || sources.length > MAX_PATCH_SOURCES)
    throw new RangeError(`patch of ${pages.length} pages against ${sources.length}`);
  if (
    contents.length !== pages.length * PAGE_SIZE_BYTES ||
    prefix.length !== sources.length * PAGE_SIZE_BYTES
  )
    throw new RangeError('patch: contents of a wrong length');
  const raw = new Uint8Array(pages.length * 4 + sources.length * 8 + blanks.length * 2);
  putPlanes(raw, putDeltas64(raw, putDeltas32(raw, 0, pages), sources), blanks, 2);
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
      blankCount: blanks.length,
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
  const { recordCount, sourceCount, blankCount, columnBytes } = header;
  if (header.kind !== FRAME_KIND_PATCH) throw fail('not a frame of patched pages');
  const columnsEnd = FRAME_HEADER_BYTES + columnBytes;
  let raw: Uint8Array;
  try {
    const rawBytes = recordCount * 4 + sourceCount * 8 + blankCount * 2;
    raw = decompress(bytes.subarray(FRAME_HEADER_BYTES, columnsEnd), rawBytes);
  } catch (cause) {
    throw fail(`columns do not decompress (${describeError(cause)})`, cause);
  }
  const pages = takeDeltas32(raw, 0, recordCount);
  const sources = takeDeltas64(raw, recordCount * 4, sourceCount);
  const blanks = takePlanes(raw, recordCount * 4 + sourceCount * 8, blankCount, 2);
  const own = frameKey(packSeq, place.frame);
  for (let i = 1; i < recordCount; i++)
    if (pages[i]! <= pages[i - 1]!) throw fail('pages are not in ascending order');
  for (let i = 0; i < blankCount; i++)
    if (blanks[i]! >= recordCount || (i > 0 && blanks[i]! <= blanks[i - 1]!))
      throw fail('numbers of blank records are not in ascending order');
  for (let i = 0; i < sourceCount; i++) {
    if (!isRecordRef(sources[i]!)) throw fail('source reference is out of bounds');
    if (i > 0 && sources[i]! <= sources[i - 1]!) throw fail('sources are not in ascending order');
    if (frameKeyOfRef(sources[i]!) >= own) throw fail('a source does not lie before the frame');
  }
  return { pages, sources, blanks, digest: header.digest, packed: bytes.subarray(columnsEnd) };
}

/** @param prefix the sources' pages, in order @returns the pages as whole ones @throws REPO_DAMAGED */
export function unpackPatch(patch: Patch, prefix: Uint8Array, place: FramePlace): PageRecords {
  try {
    return wholePages(patch, decompressWithPrefix(patch.packed, prefix, bytesOf(patch)));
  } catch (cause) {
    throw notUnpacked(place, cause);
  }
}

/** Unpacks as `unpackPatch` does, on another thread. Neither `patch` nor `prefix` may change until then. */
export async function unpackPatchAsync(
  patch: Patch,
  prefix: Uint8Array,
  place: FramePlace,
): Promise<PageRecords> {
  try {
    return wholePages(patch, await decompressWithPrefixAsync(patch.packed, prefix, bytesOf(patch)));
  } catch (cause) {
    throw notUnpacked(place, cause);
  }
}

function bytesOf({ pages }: Patch): number {
  return pages.length * PAGE_SIZE_BYTES;
}

function notUnpacked(place: FramePlace, cause: unknown): Error {
  const what = `pages do not decompress (${describeError(cause)})`;
  return damaged(place.key, what, { frame: place.frame }, cause);
}

/** @param pages 4096 bytes for each record of the patch; kept where none is blank */
export function wholePages(patch: Patch, pages: Uint8Array): PageRecords {
  const { blanks, digest } = patch;
  const count = patch.pages.length;
  const codecs = new Uint8Array(count).fill(CODEC_RAW);
  const controlOffsets = new Uint32Array(count + 1);
  const dataOffsets = Uint32Array.from({ length: count + 1 }, (_, i) => i * PAGE_SIZE_BYTES);
  const records = { count, pages: patch.pages, codecs, baseRefs: new Float64Array(count), digest };
  if (blanks.length === 0) return { ...records, controlOffsets, dataOffsets, body: pages };
  // Blank ones look as they do in a frame of pages.
  for (const record of blanks) codecs[record] = CODEC_RUNS;
  const isBlank = (record: number): boolean => codecs[record] === CODEC_RUNS;
  for (let i = 0; i < count; i++)
    controlOffsets[i + 1] = controlOffsets[i]! + (isBlank(i) ? BLANK_CONTROL.length : 0);
  dataOffsets[0] = controlOffsets[count]!;
  for (let i = 0; i < count; i++)
    dataOffsets[i + 1] = dataOffsets[i]! + (isBlank(i) ? BLANK_DATA.length : PAGE_SIZE_BYTES);
  const body = new Uint8Array(dataOffsets[count]!);
  for (let i = 0; i < count; i++) {
    if (isBlank(i)) body.set(BLANK_CONTROL, controlOffsets[i]);
    const data = isBlank(i) ? BLANK_DATA : pages.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES);
    body.set(data, dataOffsets[i]);
  }
  return { ...records, controlOffsets, dataOffsets, body };
}
