/** What the tracker and its receiver thread share and say to each other. */

import type { MemoryLayout } from '../../../../src/hypervisor/memory-layout.js';
import type { JsonObject } from '../../../../src/types.js';

export interface ReceiverSetup {
  /** Staging file. */
  readonly staging: number;
  readonly layout: MemoryLayout;
  /** See `viewsOf`. */
  readonly shared: SharedArrayBuffer;
  /** The guest may name free pages, which QEMU then leaves out of the stream. */
  readonly allowMissing: boolean;
}

/** Starts the reading of one stream. The descriptor stays the sender's to close. */
export interface ReceiveRequest {
  readonly socket: number;
}

export interface ReceivedStream {
  /** Device sections as they stood in the stream. */
  readonly deviceBytes: Uint8Array;
  readonly machineType: string;
  readonly missingPages: number;
}

export type ReceiveReply = { readonly received: ReceivedStream } | { readonly error: JsonObject };

export interface SharedViews {
  readonly dirty: Uint32Array;
  readonly filled: Uint32Array;
  /** Counters of the present stream: [0] page records so far, [1] those of them that have content. */
  readonly counters: Int32Array;
}

const COUNTER_BYTES = 64;

export function allocateShared(pageSpan: number): SharedArrayBuffer {
  return new SharedArrayBuffer(2 * (pageSpan / 8) + COUNTER_BYTES);
}

/** `pageSpan` is a multiple of 64, so both bitmaps are whole words. */
export function viewsOf(shared: SharedArrayBuffer, pageSpan: number): SharedViews {
  const words = pageSpan / 32;
  return {
    dirty: new Uint32Array(shared, 0, words),
    filled: new Uint32Array(shared, words * 4, words),
    counters: new Int32Array(shared, words * 8, COUNTER_BYTES / 4),
  };
}
