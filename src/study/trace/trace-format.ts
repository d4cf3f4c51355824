/**
 * Dirty-page traces: what a guest wrote, epoch by epoch, with the contents before and after
 * (docs/trace-format.md).
 *
 *     header | block | block | ... | end block
 *
 * The part that writer and reader share: layout of header and blocks, and their checksums.
 */

import { createHash } from 'node:crypto';

import { CheckpointError } from '../../errors.js';
import { layOut, MAX_PAGE_SPAN, type MemoryLayout } from '../../hypervisor/memory-layout.js';
import { parseJson } from '../../records/json-text.js';
import type { Json, JsonObject } from '../../types.js';

const MAGIC = 'CAIRNTRC';
const VERSION = 1;
/** Magic 8, version 2, zero 2, length of the JSON 4, SHA-256 over those and the JSON 32. */
export const FILE_HEADER_BYTES = 48;
const MAX_HEADER_JSON_BYTES = 1 << 20;

export const BLOCK_HEADER_BYTES = 64;
const BLOCK_MAGIC = 0x4f504543;
const HASHED_BLOCK_BYTES = 32;
/** Bounds what a reader must hold: 16 MiB and a little for each block. */
export const MAX_BLOCK_PAGES = 2048;

/** Kind of a block. */
export const BLOCK_PAGES = 1;
export const BLOCK_END = 2;

/** What a trace has of a dirty page's contents. */
export const CONTENT_NONE = 0;
/** The old contents are those that this trace last gave for the page. */
export const CONTENT_KNOWN = 1;
export const CONTENT_STORED = 2;
export const CONTENT_ZERO = 3;

export interface TraceHeader {
  /** What ran in the guest, such as `redis`. */
  readonly workload: string;
  /** How the load was made, for people to read. */
  readonly description: string;
  /** Time for which the guest ran in each epoch, as intended. */
  readonly epochMs: number;
  readonly layout: MemoryLayout;
  readonly hypervisor: string;
  readonly machineType: string;
  /** Dirty tracker that named the pages. */
  readonly tracker: string;
  /** ISO 8601. */
  readonly recorded: string;
}

export interface BlockHeader {
  readonly kind: number;
  readonly epoch: number;
  readonly pageCount: number;
  readonly storedBytes: number;
  readonly rawBytes: number;
  /** Time for which the guest ran in this epoch. */
  readonly runUs: number;
}

export function encodeHeader(header: TraceHeader): Uint8Array {
  const { layout, ...rest } = header;
  const regions = layout.regions.map(({ id, sizeBytes }) => ({ id, sizeBytes }));
  const json = Buffer.from(JSON.stringify({ ...rest, regions }));
  const bytes = Buffer.alloc(FILE_HEADER_BYTES + json.length);
  bytes.write(MAGIC, 0, 'latin1');
  bytes.writeUInt16LE(VERSION, 8);
  bytes.writeUInt32LE(json.length, 12);
  json.copy(bytes, FILE_HEADER_BYTES);
  headerChecksum(bytes).copy(bytes, 16);
  return bytes;
}

/** @throws TRACE_MALFORMED */
export function jsonLengthOf(head: Buffer, path: string): number {
  if (head.length < FILE_HEADER_BYTES || head.toString('latin1', 0, 8) !== MAGIC)
    throw malformed(path, 'not a trace');
  const version = head.readUInt16LE(8);
  if (version !== VERSION) throw malformed(path, `version ${version}; this program reads ${VERSION}`);
  const length = head.readUInt32LE(12);
  if (length > MAX_HEADER_JSON_BYTES) throw malformed(path, 'header is too long');
  return length;
}

/** @param bytes the whole header. @throws TRACE_MALFORMED */
export function decodeHeader(bytes: Buffer, path: string): TraceHeader {
  if (!headerChecksum(bytes).equals(bytes.subarray(16, FILE_HEADER_BYTES)))
    throw malformed(path, 'header checksum does not match');
  const json = objectIn(bytes.toString('utf8', FILE_HEADER_BYTES), path);
  const text = (name: string): string => {
    const value = json[name];
    if (typeof value !== 'string') throw malformed(path, `header field ${name} is missing`);
    return value;
  };
  const { epochMs, regions } = json;
  if (typeof epochMs !== 'number' || !(epochMs > 0) || !Array.isArray(regions))
    throw malformed(path, 'header without epochMs or regions');
  return {
    workload: text('workload'),
    description: text('description'),
    epochMs,
    layout: layoutOf(regions as readonly Json[], path),
    hypervisor: text('hypervisor'),
    machineType: text('machineType'),
    tracker: text('tracker'),
    recorded: text('recorded'),
  };
}

function objectIn(text: string, path: string): JsonObject {
  let value: Json;
  try {
    value = parseJson(text);
  } catch (cause) {
    throw malformed(path, 'header is not JSON', cause);
  }
  if (isObject(value)) return value;
  throw malformed(path, 'header is not an object');
}

function isObject(value: Json): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function layoutOf(regions: readonly Json[], path: string): MemoryLayout {
  const named = regions.map((region) => {
    const { id, sizeBytes } = isObject(region) ? region : {};
    if (typeof id !== 'string' || typeof sizeBytes !== 'number')
      throw malformed(path, 'header with a region that has no id or size');
    return { id, sizeBytes };
  });
  try {
    const layout = layOut(named);
    if (layout.pageSpan <= MAX_PAGE_SPAN) return layout;
  } catch (cause) {
    throw malformed(path, 'header with an impossible region', cause);
  }
  throw malformed(path, 'header with more memory than there are page indexes');
}

export function encodeBlock(header: BlockHeader, body: Uint8Array): Uint8Array {
  const bytes = Buffer.alloc(BLOCK_HEADER_BYTES + body.length);
  bytes.writeUInt32LE(BLOCK_MAGIC, 0);
  bytes.writeUInt8(header.kind, 4);
  bytes.writeUInt32LE(header.epoch, 8);
  bytes.writeUInt32LE(header.pageCount, 12);
  bytes.writeUInt32LE(header.storedBytes, 16);
  bytes.writeUInt32LE(header.rawBytes, 20);
  bytes.writeUInt32LE(header.runUs, 24);
  bytes.set(body, BLOCK_HEADER_BYTES);
  blockChecksum(bytes, body).copy(bytes, HASHED_BLOCK_BYTES);
  return bytes;
}

/**
 * Field values that are possible at all; the checksum covers the body too and comes later.
 * @throws TRACE_MALFORMED
 */
export function decodeBlockHeader(bytes: Buffer, path: string): BlockHeader {
  if (bytes.length < BLOCK_HEADER_BYTES) throw malformed(path, 'ends before its end block');
  if (bytes.readUInt32LE(0) !== BLOCK_MAGIC) throw malformed(path, 'no block where one should be');
  const header: BlockHeader = {
    kind: bytes.readUInt8(4),
    epoch: bytes.readUInt32LE(8),
    pageCount: bytes.readUInt32LE(12),
    storedBytes: bytes.readUInt32LE(16),
    rawBytes: bytes.readUInt32LE(20),
    runUs: bytes.readUInt32LE(24),
  };
  const most = MAX_BLOCK_PAGES * (5 + 2 * 4096);
  const possible =
    (header.kind === BLOCK_PAGES || header.kind === BLOCK_END) &&
    header.pageCount <= MAX_BLOCK_PAGES &&
    header.rawBytes <= most &&
    header.storedBytes <= most;
  if (!possible) throw malformed(path, `block of epoch ${header.epoch} is out of bounds`);
  return header;
}

/** @throws TRACE_MALFORMED */
export function checkBlock(head: Buffer, body: Buffer, path: string): void {
  if (blockChecksum(head, body).equals(head.subarray(HASHED_BLOCK_BYTES, BLOCK_HEADER_BYTES))) return;
  throw malformed(path, 'block checksum does not match');
}

export function malformed(path: string, what: string, cause?: unknown): CheckpointError {
  return new CheckpointError('TRACE_MALFORMED', `trace ${path}: ${what}`, { cause, detail: { path } });
}

function headerChecksum(bytes: Buffer): Buffer {
  return createHash('sha256')
    .update(bytes.subarray(0, 16))
    .update(bytes.subarray(FILE_HEADER_BYTES))
    .digest();
}

function blockChecksum(head: Uint8Array, body: Uint8Array): Buffer {
  return createHash('sha256').update(head.subarray(0, HASHED_BLOCK_BYTES)).update(body).digest();
}
