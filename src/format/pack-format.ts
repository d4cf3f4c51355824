/**
 * Header, directory and trailer of a pack (docs/format.md, packs).
 *
 *     header 64    0 8 "CAIRNPAK" | 8 2 version | 10 2 zero | 12 4 seq | 16 16 owner
 *                  32 32 SHA-256 over bytes 0-31
 *     frames ...   one after the other, no gaps
 *     directory    24 a frame: 0 4 length of frame | 4 1 kind | 5 1 zero | 6 2 record count
 *                  8 16 frame checksum, cut
 *     trailer 64   0 8 "CAIRNEND" | 8 4 frame count | 12 4 seq | 16 8 offset of directory | 24 8 zero
 *                  32 32 SHA-256 over header, directory and bytes 0-31 of the trailer
 */

import { createHash } from 'node:crypto';

import { damaged } from '../records/damage.js';
import { FRAME_HEADER_BYTES, FRAME_KIND_BLOB, FRAME_KIND_PAGES, FRAME_KIND_PATCH } from './frame.js';
import { checkVersion, FORMAT_VERSION } from './format-version.js';
import { MAX_FRAMES_PER_PACK, MAX_RECORDS_PER_FRAME } from './record-ref.js';

export const PACK_HEADER_BYTES = 64;
export const PACK_TRAILER_BYTES = 64;
export const DIRECTORY_ENTRY_BYTES = 24;
export const CUT_CHECKSUM_BYTES = 16;
const HASHED_BYTES = 32;
const HEADER_MAGIC = 'CAIRNPAK';
const TRAILER_MAGIC = 'CAIRNEND';

/** A pack in progress is closed when it has reached this; what object stores and backup tools handle well. */
export const PACK_TARGET_BYTES = 2 ** 30;

export interface FrameEntry {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly kind: number;
  readonly recordCount: number;
  /** First 16 bytes of the frame's SHA-256. */
  readonly checksum: Uint8Array;
}

export interface PackTrailer {
  readonly frameCount: number;
  readonly directoryOffset: number;
}

export function encodePackHeader(seq: number, owner: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(PACK_HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  bytes.set(Buffer.from(HEADER_MAGIC, 'latin1'));
  view.setUint16(8, FORMAT_VERSION, true);
  view.setUint32(12, seq, true);
  bytes.set(owner, 16);
  bytes.set(createHash('sha256').update(bytes.subarray(0, HASHED_BYTES)).digest(), HASHED_BYTES);
  return bytes;
}

/** @throws REPO_DAMAGED, REPO_VERSION */
export function checkPackHeader(key: string, bytes: Uint8Array, seq: number, owner: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const checksum = createHash('sha256').update(bytes.subarray(0, HASHED_BYTES)).digest();
  if (Buffer.compare(checksum, bytes.subarray(HASHED_BYTES)) !== 0)
    throw damaged(key, 'header checksum does not match');
  if (latin1(bytes, 0, 8) !== HEADER_MAGIC) throw damaged(key, 'not a pack');
  checkVersion(key, view.getUint16(8, true), []);
  if (
    Buffer.compare(
      bytes.subarray(0, HASHED_BYTES),
      encodePackHeader(seq, owner).subarray(0, HASHED_BYTES),
    ) !== 0
  ) {
    throw damaged(key, 'header of another pack or chain');
  }
}

/** Directory and trailer, as they end a pack. */
export function encodePackEnd(
  header: Uint8Array,
  seq: number,
  frames: readonly FrameEntry[],
  directoryOffset: number,
): { readonly bytes: Uint8Array; readonly sha256: string } {
  const directoryBytes = frames.length * DIRECTORY_ENTRY_BYTES;
  const bytes = new Uint8Array(directoryBytes + PACK_TRAILER_BYTES);
  const view = new DataView(bytes.buffer);
  frames.forEach((frame, i) => {
    const at = i * DIRECTORY_ENTRY_BYTES;
    view.setUint32(at, frame.lengthBytes, true);
    view.setUint8(at + 4, frame.kind);
    view.setUint16(at + 6, frame.recordCount, true);
    bytes.set(frame.checksum, at + 8);
  });
  bytes.set(Buffer.from(TRAILER_MAGIC, 'latin1'), directoryBytes);
  view.setUint32(directoryBytes + 8, frames.length, true);
  view.setUint32(directoryBytes + 12, seq, true);
  view.setBigUint64(directoryBytes + 16, BigInt(directoryOffset), true);
  const checksum = createHash('sha256')
    .update(header)
    .update(bytes.subarray(0, directoryBytes + HASHED_BYTES))
    .digest();
  bytes.set(checksum, directoryBytes + HASHED_BYTES);
  return { bytes, sha256: checksum.toString('hex') };
}

/** Just enough to find the directory; `decodeDirectory` proves it right. @throws REPO_DAMAGED */
export function locateDirectory(
  key: string,
  trailer: Uint8Array,
  seq: number,
  packBytes: number,
): PackTrailer {
  const view = new DataView(trailer.buffer, trailer.byteOffset, trailer.length);
  if (latin1(trailer, 0, 8) !== TRAILER_MAGIC)
    throw damaged(key, 'no trailer: the pack is cut off or overwritten');
  const frameCount = view.getUint32(8, true);
  const directoryOffset = view.getBigUint64(16, true);
  const expected = packBytes - PACK_TRAILER_BYTES - frameCount * DIRECTORY_ENTRY_BYTES;
  if (
    frameCount < 1 ||
    frameCount > MAX_FRAMES_PER_PACK ||
    directoryOffset !== BigInt(expected) ||
    expected < PACK_HEADER_BYTES ||
    view.getUint32(12, true) !== seq ||
    view.getBigUint64(24, true) !== 0n
  ) {
    throw damaged(key, 'trailer does not fit the pack');
  }
  return { frameCount, directoryOffset: expected };
}

/**
 * @param end directory and trailer
 * @throws REPO_DAMAGED
 */
export function decodeDirectory(
  key: string,
  header: Uint8Array,
  end: Uint8Array,
  trailer: PackTrailer,
): { readonly frames: readonly FrameEntry[]; readonly sha256: string } {
  const directoryBytes = trailer.frameCount * DIRECTORY_ENTRY_BYTES;
  const checksum = createHash('sha256')
    .update(header)
    .update(end.subarray(0, directoryBytes + HASHED_BYTES))
    .digest();
  if (Buffer.compare(checksum, end.subarray(directoryBytes + HASHED_BYTES)) !== 0) {
    throw damaged(key, 'directory checksum does not match');
  }
  const view = new DataView(end.buffer, end.byteOffset, end.length);
  const frames: FrameEntry[] = [];
  let offset = PACK_HEADER_BYTES;
  for (let frame = 0; frame < trailer.frameCount; frame++) {
    const at = frame * DIRECTORY_ENTRY_BYTES;
    const entry: FrameEntry = {
      offset,
      lengthBytes: view.getUint32(at, true),
      kind: view.getUint8(at + 4),
      recordCount: view.getUint16(at + 6, true),
      checksum: end.slice(at + 8, at + 8 + CUT_CHECKSUM_BYTES),
    };
    offset += entry.lengthBytes;
    const isPages = entry.kind === FRAME_KIND_PAGES || entry.kind === FRAME_KIND_PATCH;
    const fits =
      entry.lengthBytes >= FRAME_HEADER_BYTES &&
      offset <= trailer.directoryOffset &&
      view.getUint8(at + 5) === 0 &&
      (isPages || entry.kind === FRAME_KIND_BLOB) &&
      (isPages
        ? entry.recordCount >= 1 && entry.recordCount <= MAX_RECORDS_PER_FRAME
        : entry.recordCount === 0);
    if (!fits) throw damaged(key, 'directory entry is out of bounds', { frame });
    frames.push(entry);
  }
  if (offset !== trailer.directoryOffset) throw damaged(key, 'frames do not reach the directory');
  return { frames, sha256: checksum.toString('hex') };
}

function latin1(bytes: Uint8Array, from: number, length: number): string {
  return Buffer.from(bytes.subarray(from, from + length)).toString('latin1');
}
