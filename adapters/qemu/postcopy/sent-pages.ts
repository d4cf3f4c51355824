/**
 * Which pages a destination has been sent. None may be sent twice: it cannot place a page where one lies, and ends the
 * whole VM over it.
 */

import type { MemoryLayout, MemoryRegion } from '../../../src/hypervisor/memory-layout.js';

export class SentPages {
  readonly #bits: Uint8Array;
  #count = 0;

  constructor({ pageSpan }: MemoryLayout) {
    this.#bits = new Uint8Array(Math.ceil(pageSpan / 8));
  }

  get count(): number {
    return this.#count;
  }

  has(page: number): boolean {
    return (this.#bits[page >>> 3]! & (1 << (page & 7))) !== 0;
  }

  /** @throws RangeError for a page that was sent before */
  add(page: number): void {
    if (this.has(page)) throw new RangeError(`page ${page} is sent twice`);
    this.#bits[page >>> 3]! |= 1 << (page & 7);
    this.#count++;
  }

  /** Takes over what a destination says that it has of a region. @param bitmap a bit a page, LSB first */
  addReceived({ firstPage, pageCount }: MemoryRegion, bitmap: Uint8Array): void {
    for (let i = 0; i < pageCount; i++) {
      if ((bitmap[i >>> 3]! & (1 << (i & 7))) !== 0 && !this.has(firstPage + i)) this.add(firstPage + i);
    }
  }
}
