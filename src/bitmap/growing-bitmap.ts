/** A set of pages whose number is not known beforehand, or not believed: as long as its highest page. */

import { DirtyBitmap } from './dirty-bitmap.js';

const FIRST_BYTES = 4096;

export class GrowingBitmap {
  #bytes = new Uint8Array(FIRST_BYTES);
  #count = 0;

  /** Pages in it. */
  get count(): number {
    return this.#count;
  }

  has(page: number): boolean {
    return ((this.#bytes[page >>> 3] ?? 0) & (1 << (page & 7))) !== 0;
  }

  /** Grows to twice its length, or to the page. */
  set(page: number): void {
    if (this.has(page)) return;
    const at = page >>> 3;
    if (at >= this.#bytes.length) {
      const longer = new Uint8Array(Math.max(at + 1, this.#bytes.length * 2));
      longer.set(this.#bytes);
      this.#bytes = longer;
    }
    this.#bytes[at]! |= 1 << (page & 7);
    this.#count++;
  }

  /** The same set as a bitmap over so many pages, of which all are. Caller owns it. */
  over(pageCount: number): DirtyBitmap {
    const bitmap = new DirtyBitmap(pageCount);
    bitmap.bytes.set(this.#bytes.subarray(0, bitmap.bytes.length));
    return bitmap;
  }
}
