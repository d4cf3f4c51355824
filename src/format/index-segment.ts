/**
 * Index segments: page -> (record, depth), sorted by page (docs/format.md, index segments).
 *
 *     0  8 "CAIRNIDX" | 8 2 version | 10 1 level | 11 1 entropy stage | 12 4 seq | 16 16 owner
 *     32 4 entry count | 36 4 raw length | 40 4 stored length | 44 4 zero
 *     48 32 SHA-256 over bytes 0-47 and body
 *     80 body: page indexes as differences in 4 planes | references as differences in 8 planes | depths
 */

import { createHash } from 'node:crypto';

import { describeError } from '../errors.js';
import { compress, decompress } from '../ffi/zstd.js';
import { putDeltas32, putDeltas64, takeDeltas32, takeDeltas64 } from './byte-columns.js';
import { damaged } from '../records/damage.js';
import { checkVersion, FORMAT_VERSION } from './format-version.js';
import { isRecordRef, MAX_DELTA_DEPTH, ZERO_REF } from './record-ref.js';

export interface IndexEntries {
  /** Strictly ascending. */
  readonly pages: Uint32Array;
  /** 0 = the page is zero, whatever older segments say. */
  readonly refs: Float64Array;
  readonly depths: Uint8Array;
}

export interface SegmentId {
  readonly seq: number;
  readonly level: number;
  readonly owner: Uint8Array;
}

const HEADER_BYTES = 80;
const HASHED_BYTES = 48;
const MAGIC = 'CAIRNIDX';
const ENTRY_BYTES = 13;

export function encodeSegment(id: SegmentId, entries: IndexEntries, level: number): Uint8Array {
  const count = entries.pages.length;
  const body = new Uint8Array(count * ENTRY_BYTES);
  let at = putDeltas32(body, 0, entries.pages);
  at = putDeltas64(body, at, entries.refs);
  body.set(entries.depths, at);
  const packed = level > 0 && count > 0 ? compress(body, level) : body;
  const stored = packed.length < body.length ? packed : body;
  const bytes = new Uint8Array(HEADER_BYTES + stored.length);
  const view = new DataView(bytes.buffer);
  bytes.set(Buffer.from(MAGIC, 'latin1'));
  view.setUint16(8, FORMAT_VERSION, true);
  view.setUint8(10, id.level);
  view.setUint8(11, stored === body ? 0 : 1);
  view.setUint32(12, id.seq, true);
  bytes.set(id.owner, 16);
  view.setUint32(32, count, true);
  view.setUint32(36, body.length, true);
  view.setUint32(40, stored.length, true);
  bytes.set(stored, HEADER_BYTES);
  bytes.set(checksumOf(bytes), HASHED_BYTES);
  return bytes;
}

/**
 * @param pageSpan every page is below it
 * @throws REPO_DAMAGED, REPO_VERSION
 */
export function decodeSegment(key: string, bytes: Uint8Array, id: SegmentId, pageSpan: number): IndexEntries {
  if (bytes.length < HEADER_BYTES) throw damaged(key, 'index segment is cut off');
  if (Buffer.compare(checksumOf(bytes), bytes.subarray(HASHED_BYTES, HEADER_BYTES)) !== 0) {
    throw damaged(key, 'index checksum does not match');
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, HEADER_BYTES);
  if (Buffer.from(bytes.subarray(0, 8)).toString('latin1') !== MAGIC)
    throw damaged(key, 'not an index segment');
  checkVersion(key, view.getUint16(8, true), []);
  const isExpected =
    view.getUint8(10) === id.level &&
    view.getUint32(12, true) === id.seq &&
    Buffer.compare(bytes.subarray(16, 32), id.owner) === 0;
  if (!isExpected) throw damaged(key, 'another segment than the manifest lists');
  const count = view.getUint32(32, true);
  const rawBytes = view.getUint32(36, true);
  const isStoredRaw = view.getUint8(11) === 0;
  if (
    count > pageSpan ||
    rawBytes !== count * ENTRY_BYTES ||
    view.getUint32(40, true) !== bytes.length - HEADER_BYTES ||
    view.getUint32(44, true) !== 0 ||
    view.getUint8(11) > 1 ||
    (isStoredRaw && rawBytes !== bytes.length - HEADER_BYTES)
  ) {
    throw damaged(key, 'lengths in the header are out of bounds');
  }
  const body = isStoredRaw
    ? bytes.subarray(HEADER_BYTES)
    : inflate(key, bytes.subarray(HEADER_BYTES), rawBytes);
  const entries: IndexEntries = {
    pages: takeDeltas32(body, 0, count),
    refs: takeDeltas64(body, count * 4, count),
    depths: body.slice(count * 12),
  };
  checkEntries(key, entries, pageSpan);
  return entries;
}

function checkEntries(key: string, { pages, refs, depths }: IndexEntries, pageSpan: number): void {
  for (let i = 0; i < pages.length; i++) {
    if (i > 0 && pages[i]! <= pages[i - 1]!)
      throw damaged(key, 'pages are not in ascending order', { entry: i });
    if (pages[i]! >= pageSpan) throw damaged(key, 'page outside the memory', { entry: i });
    const isZero = refs[i] === ZERO_REF && depths[i] === 0;
    if (!isZero && !(isRecordRef(refs[i]!) && depths[i]! <= MAX_DELTA_DEPTH)) {
      throw damaged(key, 'reference or depth out of bounds', { entry: i });
    }
  }
}

function inflate(key: string, stored: Uint8Array, rawBytes: number): Uint8Array {
  try {
    return decompress(stored, rawBytes);
  } catch (cause) {
    throw damaged(key, `body does not decompress (${describeError(cause)})`, {}, cause);
  }
}

function checksumOf(bytes: Uint8Array): Buffer {
  return createHash('sha256')
    .update(bytes.subarray(0, HASHED_BYTES))
    .update(bytes.subarray(HEADER_BYTES))
    .digest();
}
