/**
 * What a postcopy destination says to its source. All integers are big-endian.
 *
 *     message = u16 type | u16 length | payload
 *
 *     1 SHUT          u32 error, 0 for good; after the end of the source's stream
 *     2 PONG          u32 value of the PING
 *     3 REQ_PAGES_ID  u64 start, u32 length, u8 length, block
 *     4 REQ_PAGES     u64 start, u32 length; of the block that was asked for last
 *     5 RECV_BITMAP   u8 length, block; behind the message: u64 size, that many bytes (bits of pages, LSB first), u64 mark
 *     6 RESUME_ACK    u32 1
 *     7 SWITCHOVER_ACK
 *
 * Source: QEMU migration/migration.c, migration/ram.c (7.2 to 10.2).
 */

import { CheckpointError } from '../../../src/errors.js';
import type { MemoryLayout, MemoryRegion } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';

export type ReturnMessage =
  | { readonly kind: 'shut'; readonly error: number }
  | { readonly kind: 'pong'; readonly value: number }
  /** Flat page indexes. */
  | { readonly kind: 'pages'; readonly firstPage: number; readonly pageCount: number }
  /** One bit a page of the region, LSB first; the caller owns it. */
  | { readonly kind: 'received'; readonly region: MemoryRegion; readonly bitmap: Uint8Array }
  | { readonly kind: 'resumed' };

const TYPE = {
  SHUT: 1,
  PONG: 2,
  REQ_PAGES_ID: 3,
  REQ_PAGES: 4,
  RECV_BITMAP: 5,
  RESUME_ACK: 6,
  SWITCHOVER_ACK: 7,
} as const;

const HEAD_BYTES = 4;
/** RAMBLOCK_RECV_BITMAP_ENDING */
const BITMAP_END = 0x0123456789abcdefn;

export class ReturnPath {
  readonly #layout: MemoryLayout;
  #unread = Buffer.alloc(0);
  #lastBlock: MemoryRegion | undefined;

  constructor(layout: MemoryLayout) {
    this.#layout = layout;
  }

  /**
   * The messages that are whole by now; the rest is kept.
   * @throws STREAM_MALFORMED for what no destination says
   */
  *read(bytes: Uint8Array): Generator<ReturnMessage> {
    this.#unread = Buffer.concat([this.#unread, bytes]);
    for (;;) {
      const found = this.#next();
      if (found === undefined) return;
      this.#unread = this.#unread.subarray(found.length);
      if (found.message !== undefined) yield found.message;
    }
  }

  #next(): { readonly length: number; readonly message?: ReturnMessage } | undefined {
    const all = this.#unread;
    if (all.length < HEAD_BYTES) return undefined;
    const type = all.readUInt16BE(0);
    const length = HEAD_BYTES + all.readUInt16BE(2);
    if (all.length < length) return undefined;
    const payload = all.subarray(HEAD_BYTES, length);
    switch (type) {
      case TYPE.SHUT:
        return { length, message: { kind: 'shut', error: number32(payload) } };
      case TYPE.PONG:
        return { length, message: { kind: 'pong', value: number32(payload) } };
      case TYPE.REQ_PAGES_ID:
        if (payload.length < 13) throw malformed('a request for pages of no block');
        this.#lastBlock = this.#blockAt(payload.subarray(12));
        return { length, message: this.#request(payload) };
      case TYPE.REQ_PAGES:
        return { length, message: this.#request(payload) };
      case TYPE.RECV_BITMAP:
        return this.#bitmap(length, this.#blockAt(payload));
      case TYPE.RESUME_ACK:
        if (number32(payload) !== 1) throw malformed('a resumption that it does not take');
        return { length, message: { kind: 'resumed' } };
      case TYPE.SWITCHOVER_ACK:
        return { length };
      default:
        throw malformed(`a message of the unknown type ${type}`);
    }
  }

  #request(payload: Buffer): ReturnMessage {
    const region = this.#lastBlock;
    if (region === undefined || payload.length < 12) throw malformed('a request for pages of no block');
    const start = Number(payload.readBigUInt64BE(0));
    const length = payload.readUInt32BE(8);
    const isWhole = start % PAGE_SIZE_BYTES === 0 && length % PAGE_SIZE_BYTES === 0;
    if (!isWhole || length === 0 || start + length > region.sizeBytes)
      throw malformed(`a request for ${length} bytes at ${start} of ${region.id}`);
    return {
      kind: 'pages',
      firstPage: region.firstPage + start / PAGE_SIZE_BYTES,
      pageCount: length / PAGE_SIZE_BYTES,
    };
  }

  #bitmap(
    at: number,
    region: MemoryRegion,
  ): { readonly length: number; readonly message: ReturnMessage } | undefined {
    const all = this.#unread;
    const sizeBytes = Math.ceil(region.pageCount / 64) * 8;
    const length = at + 8 + sizeBytes + 8;
    if (all.length >= at + 8 && all.readBigUInt64BE(at) !== BigInt(sizeBytes))
      throw malformed(`another number of pages of ${region.id} than there are`);
    if (all.length < length) return undefined;
    if (all.readBigUInt64BE(length - 8) !== BITMAP_END) throw malformed('pages of a block without their end');
    const bitmap = Uint8Array.from(all.subarray(at + 8, length - 8));
    return { length, message: { kind: 'received', region, bitmap } };
  }

  /** u8 length, name */
  #blockAt(bytes: Buffer): MemoryRegion {
    const name = bytes.toString('utf8', 1, 1 + (bytes[0] ?? 0));
    const region = this.#layout.regions.find(({ id }) => id === name);
    if (region === undefined) throw malformed('the name of a block that the checkpoint does not have');
    return region;
  }
}

function number32(payload: Buffer): number {
  if (payload.length < 4) throw malformed('a message without its number');
  return payload.readUInt32BE(0);
}

function malformed(what: string): CheckpointError {
  return new CheckpointError('STREAM_MALFORMED', `QEMU sent ${what} on its return path`);
}
