/**
 * Frames: what a pack is made of, compressed and checked as one piece (docs/format.md, frames).
 *
 *     0   4  magic "CFRM"            16  8  digest (pages), 0 (blob)
 *     4   1  kind                    24  2  source count (patch), 0 (others)
 *     5   1  entropy stage           26  2  count of blank records (patch), 0 (others)
 *     6   2  record count            28  4  length of the columns as stored (patch), 0 (others)
 *     8   4  stored length of body   32 32  SHA-256 over bytes 0-31 and the stored body
 *     12  4  raw length of body      64     body as stored
 *
 * Encoding is pure, and is called by worker threads. Nothing read from a stored frame is used before it is
 * checked.
 */

import { createHash } from 'node:crypto';

import { describeError } from '../errors.js';
import { compress, compressInBlocks, decompress, decompressAsync, MAX_LEVEL } from '../ffi/zstd.js';
import { encodeBody, parseBody, type FrameRecords, type PageRecords } from './frame-body.js';
import { MAX_PATCH_RECORDS, MAX_PATCH_SOURCES, MAX_RAW_BODY_BYTES } from './frame-limits.js';
import type { FramePlace } from './frame-place.js';
import { damaged } from '../records/damage.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import { MAX_RECORDS_PER_FRAME } from './record-ref.js';

export { FRAME_PAYLOAD_BYTES } from './frame-limits.js';
export type { FrameRecords, PageRecords } from './frame-body.js';

export const FRAME_HEADER_BYTES = 64;
const HASHED_HEADER_BYTES = 32;
const MAGIC = 0x4d524643;

export const FRAME_KIND_PAGES = 1;
export const FRAME_KIND_BLOB = 2;
/** See `patch-frame.ts`. */
export const FRAME_KIND_PATCH = 3;
const ENTROPY_NONE = 0;
export const ENTROPY_ZSTD = 1;

/** Device state is a few MiB; what claims to be more than this is not ours. */
export const MAX_BLOB_BYTES = 1 << 30;

/** A frame ready to be appended to a pack. Plain data: survives structured clone. */
export interface EncodedFrame {
  readonly kind: typeof FRAME_KIND_PAGES | typeof FRAME_KIND_PATCH;
  /** Header and stored body. */
  readonly bytes: Uint8Array;
  readonly pages: Uint32Array;
  readonly codecs: Uint8Array;
  readonly baseRefs: Float64Array;
  /** Depth of each record. */
  readonly depths: Uint8Array;
  /** The records that a patch frame is held against; empty for other frames. */
  readonly sources: Float64Array;
  /** Length of the body before the entropy stage. */
  readonly rawBytes: number;
}

export interface FrameHeader {
  readonly kind: number;
  readonly entropy: number;
  readonly recordCount: number;
  readonly storedBytes: number;
  readonly rawBytes: number;
  readonly digest: bigint;
  readonly sourceCount: number;
  readonly blankCount: number;
  readonly columnBytes: number;
}

/** A frame's header, and its body as stored. */
export interface FrameParts extends Omit<FrameHeader, 'storedBytes'> {
  readonly body: Uint8Array;
}

/**
 * Encodes a frame of page records. Copies what it is given.
 * @param level zstd level, 0 = off
 * @throws RangeError when the records do not fit together or are too many for one frame
 */
export function encodeFrame(records: FrameRecords, level: number): EncodedFrame {
  const body = encodeBody(records);
  return {
    kind: FRAME_KIND_PAGES,
    bytes: seal(FRAME_KIND_PAGES, records.pages.length, records.digest, body, packBody(records, body, level)),
    pages: records.pages.slice(),
    codecs: records.codecs.slice(),
    baseRefs: records.baseRefs.slice(),
    sources: new Float64Array(0),
    depths: records.depths.slice(),
    rawBytes: body.length,
  };
}

/** A frame that holds `blob` as it is. @throws RangeError when it is too long */
export function encodeBlobFrame(blob: Uint8Array, level: number): Uint8Array {
  if (blob.length > MAX_BLOB_BYTES)
    throw new RangeError(`blob of ${blob.length} bytes, at most ${MAX_BLOB_BYTES}`);
  return seal(FRAME_KIND_BLOB, 0, 0n, blob, level > 0 && blob.length > 0 ? compress(blob, level) : blob);
}

/** Below this share of its pages a frame's payload is small change, and worth a better compression. */
const SPARSE_PAYLOAD = 1 / 8;
const SPARSE_LEVELS = 3;
/** A block of its own costs a header and tables. */
const MIN_BLOCK_BYTES = 512;

/**
 * The entropy stage: columns, control bytes and data bytes each as blocks of their own, unless they are
 * short.
 */
function packBody(records: FrameRecords, body: Uint8Array, level: number): Uint8Array {
  if (level === 0) return body;
  const { control, data } = records;
  const isSparse = control.length + data.length < records.pages.length * PAGE_SIZE_BYTES * SPARSE_PAYLOAD;
  const dataAt = body.length - data.length;
  const cuts: number[] = [];
  let last = 0;
  for (const cut of [dataAt - control.length, dataAt]) {
    if (cut - last < MIN_BLOCK_BYTES || body.length - cut < MIN_BLOCK_BYTES) continue;
    cuts.push(cut);
    last = cut;
  }
  return compressInBlocks(body, cuts, isSparse ? Math.min(level + SPARSE_LEVELS, MAX_LEVEL) : level);
}

/** Decodes a frame of page records. The result refers to its own memory. @throws REPO_DAMAGED */
export function decodeFrame(bytes: Uint8Array, place: FramePlace): PageRecords {
  const header = checkFrame(bytes, place);
  return parsePages(header, inflate(header, bytes, place), place);
}

/**
 * Up to this length of a body, the way to another thread and back takes longer than decompressing it here:
 * some 15 against 60 µs.
 */
const SHORT_BODY_BYTES = 32 * 1024;

/**
 * Decodes as `decodeFrame` does, and decompresses on another thread when that takes long. `bytes` must not
 * change until then.
 */
export async function decodeFrameAsync(bytes: Uint8Array, place: FramePlace): Promise<PageRecords> {
  const header = checkFrame(bytes, place);
  const stored = bytes.subarray(FRAME_HEADER_BYTES);
  if (header.entropy !== ENTROPY_ZSTD || header.rawBytes <= SHORT_BODY_BYTES)
    return parsePages(header, inflate(header, bytes, place), place);
  let body: Uint8Array;
  try {
    body = await decompressAsync(stored, header.rawBytes);
  } catch (cause) {
    throw notDecompressed(place, cause);
  }
  return parsePages(header, body, place);
}

/** @throws REPO_DAMAGED */
export function decodeBlobFrame(bytes: Uint8Array, place: FramePlace): Uint8Array {
  const header = checkFrame(bytes, place);
  if (header.kind !== FRAME_KIND_BLOB) throw damaged(place.key, 'not a blob', { frame: place.frame });
  return inflate(header, bytes, place);
}

/** Header fields, once lengths and checksum are found right. @throws REPO_DAMAGED */
export function checkFrame(bytes: Uint8Array, place: FramePlace): FrameHeader {
  const fail = (what: string): Error => damaged(place.key, what, { frame: place.frame });
  if (bytes.length < FRAME_HEADER_BYTES) throw fail('frame is shorter than its header');
  const checksum = frameChecksum(bytes);
  if (Buffer.compare(checksum, bytes.subarray(HASHED_HEADER_BYTES, FRAME_HEADER_BYTES)) !== 0) {
    throw fail('frame checksum does not match');
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, FRAME_HEADER_BYTES);
  const header: FrameHeader = {
    kind: view.getUint8(4),
    entropy: view.getUint8(5),
    recordCount: view.getUint16(6, true),
    storedBytes: view.getUint32(8, true),
    rawBytes: view.getUint32(12, true),
    digest: view.getBigUint64(16, true),
    sourceCount: view.getUint16(24, true),
    blankCount: view.getUint16(26, true),
    columnBytes: view.getUint32(28, true),
  };
  if (view.getUint32(0, true) !== MAGIC) throw fail('not a frame');
  const isPatch = header.kind === FRAME_KIND_PATCH;
  if (!isPatch && view.getBigUint64(24, true) !== 0n) throw fail('reserved header bytes are not zero');
  if (header.storedBytes !== bytes.length - FRAME_HEADER_BYTES)
    throw fail('stored length differs from the directory');
  if (isPatch) {
    checkPatchHeader(header, fail);
    return header;
  }
  const isPages = header.kind === FRAME_KIND_PAGES;
  if (!isPages && header.kind !== FRAME_KIND_BLOB) throw fail(`unknown frame kind ${header.kind}`);
  if (header.rawBytes > (isPages ? MAX_RAW_BODY_BYTES : MAX_BLOB_BYTES))
    throw fail('raw length is out of bounds');
  const countIsRight = isPages
    ? header.recordCount >= 1 && header.recordCount <= MAX_RECORDS_PER_FRAME
    : header.recordCount === 0;
  if (!countIsRight) throw fail('record count is out of bounds');
  if (!isPages && header.digest !== 0n) throw fail('a blob has a digest');
  if (header.entropy === ENTROPY_NONE) {
    if (header.storedBytes !== header.rawBytes)
      throw fail('stored and raw length differ without compression');
  } else if (header.entropy !== ENTROPY_ZSTD) throw fail(`unknown entropy stage ${header.entropy}`);
  return header;
}

function checkPatchHeader(header: FrameHeader, fail: (what: string) => Error): void {
  const { recordCount, sourceCount, blankCount } = header;
  if (recordCount < 1 || recordCount > MAX_PATCH_RECORDS) throw fail('record count is out of bounds');
  if (blankCount >= recordCount) throw fail('count of blank records is out of bounds');
  if (sourceCount > MAX_PATCH_SOURCES) throw fail('source count is out of bounds');
  if (header.rawBytes !== recordCount * (PAGE_SIZE_BYTES + 4) + sourceCount * 8 + blankCount * 2)
    throw fail('raw length is not that of the records');
  if (header.entropy !== ENTROPY_ZSTD)
    throw fail(`entropy stage ${header.entropy} in a frame of patched pages`);
  if (header.columnBytes > header.storedBytes) throw fail('columns are longer than the body');
}

/** What bytes 32 to 63 of a frame must be. */
export function frameChecksum(bytes: Uint8Array): Buffer {
  return createHash('sha256')
    .update(bytes.subarray(0, HASHED_HEADER_BYTES))
    .update(bytes.subarray(FRAME_HEADER_BYTES))
    .digest();
}

function parsePages(header: FrameHeader, body: Uint8Array, place: FramePlace): PageRecords {
  if (header.kind !== FRAME_KIND_PAGES)
    throw damaged(place.key, 'not a frame of pages', { frame: place.frame });
  return parseBody(body, header.recordCount, header.digest, place);
}

function inflate(header: FrameHeader, bytes: Uint8Array, place: FramePlace): Uint8Array {
  const stored = bytes.subarray(FRAME_HEADER_BYTES);
  if (header.entropy === ENTROPY_NONE) return stored.slice();
  try {
    return decompress(stored, header.rawBytes);
  } catch (cause) {
    throw notDecompressed(place, cause);
  }
}

function notDecompressed(place: FramePlace, cause: unknown): Error {
  return damaged(
    place.key,
    `body does not decompress (${describeError(cause)})`,
    { frame: place.frame },
    cause,
  );
}

function seal(
  kind: number,
  recordCount: number,
  digest: bigint,
  body: Uint8Array,
  packed: Uint8Array,
): Uint8Array {
  const isSmaller = packed.length < body.length;
  return sealFrame({
    kind,
    entropy: isSmaller ? ENTROPY_ZSTD : ENTROPY_NONE,
    recordCount,
    rawBytes: body.length,
    digest,
    sourceCount: 0,
    blankCount: 0,
    columnBytes: 0,
    body: isSmaller ? packed : body,
  });
}

/** Header, checksum and body. */
export function sealFrame(parts: FrameParts): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEADER_BYTES + parts.body.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint8(4, parts.kind);
  view.setUint8(5, parts.entropy);
  view.setUint16(6, parts.recordCount, true);
  view.setUint32(8, parts.body.length, true);
  view.setUint32(12, parts.rawBytes, true);
  view.setBigUint64(16, parts.digest, true);
  view.setUint16(24, parts.sourceCount, true);
  view.setUint16(26, parts.blankCount, true);
  view.setUint32(28, parts.columnBytes, true);
  bytes.set(parts.body, FRAME_HEADER_BYTES);
  bytes.set(frameChecksum(bytes), HASHED_HEADER_BYTES);
  return bytes;
}
