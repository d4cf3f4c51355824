/**
 * The golden repository with one of its parts replaced and sealed anew, all the way up: what somebody would write who may
 * write to a repository, so that every checksum is right and the readers behind them see what was changed.
 *
 *     text        a sealed JSON object, without its seal       -> seal
 *     segment     header, place of its one slice, and entries   -> checksum -> directory -> manifests that name it
 *     frame N     header and body, not compressed (or a patch)  -> checksum -> directory -> trailer -> manifests
 *     directory   the directory of a pack                       -> trailer -> manifests
 */

import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

import { chainOfKey, seqOfKey } from '../../src/format/chain-keys.js';
import { FRAME_HEADER_BYTES, FRAME_KIND_PATCH, frameChecksum } from '../../src/format/frame.js';
import {
  DIRECTORY_ENTRY_BYTES,
  encodePackEnd,
  PACK_HEADER_BYTES,
  PACK_TRAILER_BYTES,
  type FrameEntry,
} from '../../src/format/pack-format.js';
import { sha256Hex } from '../../src/format/sealed-json.js';
import { decompress } from '../../src/ffi/zstd.js';

const GOLDEN = fileURLToPath(new URL('../../../test/golden/repository-v1/repo/', import.meta.url));
const SEAL_BYTES = 66;
const SEGMENT_HEADER_BYTES = 80;
const HASHED_SEGMENT_BYTES = 48;
const HASHED_FRAME_BYTES = 32;
const SEGMENT_ENTRY_BYTES = 13;
/** First page and length of the slice; its checksum follows, which is made anew. */
const SLICE_PLACE_BYTES = 8;
const SLICE_CHECKSUM_BYTES = 16;
const TRAILER_HASH_AT = 32;

export interface Part {
  readonly key: string;
  readonly part: 'text' | 'segment' | 'frame' | 'directory';
  /** Number of the frame. */
  readonly frame: number;
  /** Whether lengths in headers are made to fit what was changed: otherwise they are part of it. */
  readonly fits: boolean;
}

export type Objects = ReadonlyMap<string, Uint8Array>;

export function goldenObjects(): Objects {
  const files = readdirSync(GOLDEN, { recursive: true, withFileTypes: true }).filter((one) => one.isFile());
  const paths = files.map(({ parentPath, name }) => join(parentPath, name)).sort();
  return new Map(paths.map((path) => [relative(GOLDEN, path), new Uint8Array(readFileSync(path))]));
}

/** What a part holds now. Undefined when there is no such part. */
export function readPart(objects: Objects, { key, part, frame }: Part): Buffer | undefined {
  const found = objects.get(key);
  if (found === undefined) return undefined;
  const bytes = Buffer.from(found);
  if (part === 'text') return bytes.subarray(0, -SEAL_BYTES);
  if (part === 'segment') return segmentParts(bytes);
  const pack = takeApart(bytes);
  if (part === 'directory') return pack.directory;
  const stored = pack.frames[frame];
  if (stored === undefined) return undefined;
  const isPacked = stored[5] === 1 && stored[4] !== FRAME_KIND_PATCH;
  return inflated(stored, FRAME_HEADER_BYTES, stored.readUInt32LE(12), isPacked);
}

/** All objects, with `content` in the place of a part. */
export function withPart(objects: Objects, part: Part, content: Uint8Array): Objects {
  const changed = new Map(objects);
  const bytes = Buffer.from(content);
  switch (part.part) {
    case 'text':
      changed.set(part.key, sealed(bytes));
      return changed;
    case 'segment':
      changed.set(part.key, segmentOf(bytes, part.fits));
      break;
    default:
      changed.set(part.key, packOf(Buffer.from(objects.get(part.key) ?? []), part, bytes));
  }
  sealManifests(changed, part.key);
  return changed;
}

function sealed(text: Buffer): Uint8Array {
  return Buffer.concat([text, Buffer.from(`\n${sha256Hex(text)}\n`)]);
}

/** Segments of the golden repository have one slice, or none. */
function segmentParts(bytes: Buffer): Buffer {
  const directoryEnd = SEGMENT_HEADER_BYTES + SLICE_PLACE_BYTES + SLICE_CHECKSUM_BYTES;
  const rawBytes = bytes.readUInt32LE(32) * SEGMENT_ENTRY_BYTES;
  if (rawBytes === 0) return bytes;
  const isPacked = bytes.length - directoryEnd < rawBytes;
  const entries = inflated(bytes.subarray(directoryEnd), 0, rawBytes, isPacked);
  return Buffer.concat([bytes.subarray(0, SEGMENT_HEADER_BYTES + SLICE_PLACE_BYTES), entries]);
}

function segmentOf(content: Buffer, fits: boolean): Uint8Array {
  const least = SEGMENT_HEADER_BYTES + SLICE_PLACE_BYTES;
  const bytes = Buffer.concat([content, Buffer.alloc(Math.max(0, least - content.length))]);
  const header = bytes.subarray(0, SEGMENT_HEADER_BYTES);
  const place = bytes.subarray(SEGMENT_HEADER_BYTES, least);
  const entries = bytes.subarray(least);
  if (fits) {
    const count = Math.floor(entries.length / SEGMENT_ENTRY_BYTES);
    header.writeUInt32LE(count, 32);
    place.writeUInt32LE(entries.length, 4);
    for (let plane = 0; plane < 4 && count > 0; plane++) place[plane] = entries[plane * count]!;
  }
  const checksum = createHash('sha256').update(entries).digest().subarray(0, SLICE_CHECKSUM_BYTES);
  const directory = entries.length === 0 ? Buffer.alloc(0) : Buffer.concat([place, checksum]);
  createHash('sha256')
    .update(header.subarray(0, HASHED_SEGMENT_BYTES))
    .update(directory)
    .digest()
    .copy(header, HASHED_SEGMENT_BYTES);
  return Buffer.concat([header, directory, entries]);
}

function packOf(pack: Buffer, { key, part, frame, fits }: Part, content: Buffer): Uint8Array {
  const { header, frames, entries, directory } = takeApart(pack);
  if (part === 'directory') {
    const body = Buffer.concat([header, ...frames]);
    const trailer = Buffer.from(pack.subarray(-PACK_TRAILER_BYTES));
    if (fits) {
      trailer.writeUInt32LE(Math.floor(content.length / DIRECTORY_ENTRY_BYTES), 8);
      trailer.writeBigUInt64LE(BigInt(body.length), 16);
    }
    createHash('sha256')
      .update(header)
      .update(content)
      .update(trailer.subarray(0, TRAILER_HASH_AT))
      .digest()
      .copy(trailer, TRAILER_HASH_AT);
    return Buffer.concat([body, content, trailer]);
  }
  if (directory.length === 0) return pack;
  frames[frame] = frameOf(content, fits);
  const now = frames.map((bytes, i): FrameEntry => ({ ...entries[i]!, ...entryOf(bytes) }));
  const body = Buffer.concat([header, ...frames]);
  return Buffer.concat([body, encodePackEnd(header, seqOfKey(key), now, body.length).bytes]);
}

function frameOf(content: Buffer, fits: boolean): Buffer {
  const bytes = Buffer.concat([content, Buffer.alloc(Math.max(0, FRAME_HEADER_BYTES - content.length))]);
  if (fits) {
    bytes.writeUInt32LE(bytes.length - FRAME_HEADER_BYTES, 8);
    if (bytes[4] !== FRAME_KIND_PATCH) {
      bytes[5] = 0;
      bytes.writeUInt32LE(bytes.length - FRAME_HEADER_BYTES, 12);
    }
  }
  frameChecksum(bytes).copy(bytes, HASHED_FRAME_BYTES);
  return bytes;
}

function entryOf(frame: Buffer): Omit<FrameEntry, 'offset'> {
  return {
    lengthBytes: frame.length,
    kind: frame[4]!,
    recordCount: frame.readUInt16LE(6),
    checksum: frame.subarray(HASHED_FRAME_BYTES, HASHED_FRAME_BYTES + 16),
  };
}

interface PackParts {
  readonly header: Buffer;
  readonly frames: Buffer[];
  readonly entries: readonly FrameEntry[];
  readonly directory: Buffer;
}

/** Of a pack that is whole. */
function takeApart(pack: Buffer): PackParts {
  const trailer = pack.subarray(-PACK_TRAILER_BYTES);
  const directory = pack.subarray(Number(trailer.readBigUInt64LE(16)), -PACK_TRAILER_BYTES);
  const frames: Buffer[] = [];
  const entries: FrameEntry[] = [];
  let offset = PACK_HEADER_BYTES;
  for (let at = 0; at < directory.length; at += DIRECTORY_ENTRY_BYTES) {
    const lengthBytes = directory.readUInt32LE(at);
    const bytes = pack.subarray(offset, offset + lengthBytes);
    frames.push(bytes);
    entries.push({ offset, ...entryOf(bytes) });
    offset += lengthBytes;
  }
  return { header: pack.subarray(0, PACK_HEADER_BYTES), frames, entries, directory };
}

function inflated(bytes: Buffer, headerBytes: number, rawBytes: number, isPacked: boolean): Buffer {
  if (!isPacked) return bytes;
  const body = decompress(bytes.subarray(headerBytes), rawBytes);
  return Buffer.concat([bytes.subarray(0, headerBytes), body]);
}

interface Named {
  readonly seq: number;
  sizeBytes: number;
  frameCount?: number;
  directorySha256?: string;
}

/** Makes all manifests of the chain name the object as it is now. */
function sealManifests(objects: Map<string, Uint8Array>, key: string): void {
  const bytes = Buffer.from(objects.get(key)!);
  const isPack = key.includes('/packs/');
  const seq = seqOfKey(key);
  for (const [manifestKey, stored] of objects) {
    if (!manifestKey.includes('/checkpoints/') || chainOfKey(manifestKey) !== chainOfKey(key)) continue;
    const json = JSON.parse(Buffer.from(stored.subarray(0, -SEAL_BYTES)).toString('utf8')) as {
      packs: Named[];
      segments: Named[];
    };
    const named = (isPack ? json.packs : json.segments).find((one) => one.seq === seq);
    if (named === undefined) continue;
    named.sizeBytes = bytes.length;
    if (isPack) {
      named.directorySha256 = bytes.subarray(-TRAILER_HASH_AT).toString('hex');
      named.frameCount = bytes.readUInt32LE(bytes.length - PACK_TRAILER_BYTES + 8);
    } else named.directorySha256 = bytes.toString('hex', HASHED_SEGMENT_BYTES, SEGMENT_HEADER_BYTES);
    objects.set(manifestKey, sealed(Buffer.from(JSON.stringify(json))));
  }
}
