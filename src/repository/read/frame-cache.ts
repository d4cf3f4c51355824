/** Decoded frames, least recently used first out, within a budget of bytes. */

import { LRUCache } from 'lru-cache';

import type { PageRecords } from '../../format/frame.js';

/** Bytes that a record takes beside its share of the body: page, base, two offsets, codec. */
const BYTES_PER_RECORD = 21;
const BYTES_PER_FRAME = 512;

export class FrameCache {
  /** The key is that of `frameKey`. */
  readonly #frames: LRUCache<number, PageRecords>;

  constructor(budgetBytes: number) {
    this.#frames = new LRUCache({ maxSize: Math.max(1, Math.floor(budgetBytes)), sizeCalculation: sizeOf });
  }

  get(key: number): PageRecords | undefined {
    return this.#frames.get(key);
  }

  put(key: number, frame: PageRecords): void {
    if (!this.#frames.has(key)) this.#frames.set(key, frame);
  }
}

function sizeOf(frame: PageRecords): number {
  return frame.body.length + frame.count * BYTES_PER_RECORD + BYTES_PER_FRAME;
}
