/** Decoded frames, least recently used first out, within a budget of bytes. */

import type { PageRecords } from '../../format/frame.js';

/** Bytes that a record takes beside its share of the body: page, base, two offsets, codec. */
const BYTES_PER_RECORD = 21;
const BYTES_PER_FRAME = 512;

export class FrameCache {
  /**
   * Frames by `frameKey`. A Map keeps the order of insertion: the first frame is the least recently used one.
   */
  readonly #frames = new Map<number, PageRecords>();
  #sizeBytes = 0;

  constructor(private readonly budgetBytes: number) {}

  get(key: number): PageRecords | undefined {
    const frame = this.#frames.get(key);
    if (frame === undefined) return undefined;
    this.#frames.delete(key);
    this.#frames.set(key, frame);
    return frame;
  }

  put(key: number, frame: PageRecords): void {
    if (this.#frames.has(key)) return;
    this.#frames.set(key, frame);
    this.#sizeBytes += sizeOf(frame);
    for (const [oldest, old] of this.#frames) {
      if (this.#sizeBytes <= this.budgetBytes) break;
      this.#frames.delete(oldest);
      this.#sizeBytes -= sizeOf(old);
    }
  }
}

function sizeOf(frame: PageRecords): number {
  return frame.body.length + frame.count * BYTES_PER_RECORD + BYTES_PER_FRAME;
}
