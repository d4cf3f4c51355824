/**
 * Previous versions of pages, in the linear memory of the share that owns them.
 *
 * Holds what a page contained at the last encode, so that the next delta needs no read from the repository.
 * Bounded: when all slots are taken the CLOCK hand evicts a page that was not used since it last came by,
 * which keeps the writable working set and lets one-time writers go. Invariant: the content of a slot is the
 * content of the record the page map names for that page, as long as nothing failed; after a failure
 * everything is forgotten.
 */

import { PAGE_SIZE_BYTES } from '../types.js';

const FREE = 0xffffffff;

export class PageCache {
  readonly #slots = new Map<number, number>();
  readonly #pageOf: Uint32Array;
  readonly #used: Uint8Array;
  readonly #base: number;
  #hand = 0;

  /** @param base byte offset of the first slot in linear memory */
  constructor(base: number, slotCount: number) {
    this.#base = base;
    this.#pageOf = new Uint32Array(slotCount).fill(FREE);
    this.#used = new Uint8Array(slotCount);
  }

  get size(): number {
    return this.#slots.size;
  }

  /** Byte offset of the kept content of `page`, undefined when it is not kept. */
  find(page: number): number | undefined {
    const slot = this.#slots.get(page);
    if (slot === undefined) return undefined;
    this.#used[slot] = 1;
    return this.#base + slot * PAGE_SIZE_BYTES;
  }

  /** A slot for `page`, evicting another page when full; undefined when the budget holds no page at all. */
  admit(page: number): number | undefined {
    const known = this.find(page);
    if (known !== undefined || this.#pageOf.length === 0) return known;
    while (this.#used[this.#hand] === 1) {
      this.#used[this.#hand] = 0;
      this.#hand = (this.#hand + 1) % this.#pageOf.length;
    }
    const slot = this.#hand;
    this.#hand = (slot + 1) % this.#pageOf.length;
    const evicted = this.#pageOf[slot]!;
    if (evicted !== FREE) this.#slots.delete(evicted);
    this.#pageOf[slot] = page;
    this.#used[slot] = 1;
    this.#slots.set(page, slot);
    return this.#base + slot * PAGE_SIZE_BYTES;
  }

  clear(): void {
    this.#slots.clear();
    this.#pageOf.fill(FREE);
    this.#used.fill(0);
    this.#hand = 0;
  }
}
