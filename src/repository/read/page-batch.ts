/** Pages that come one by one, in any order, handed on in runs of neighbours. */

import type { MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { PageChunk } from '../../hypervisor/restore.js';
import { PAGE_SIZE_BYTES } from '../../types.js';

const FIRST_PAGES = 256;

export class PageBatch {
  readonly #mostPages: number;
  /** Pages that begin a region. */
  readonly #starts: ReadonlySet<number>;
  readonly #numbers: number[] = [];
  #bytes = new Uint8Array(FIRST_PAGES * PAGE_SIZE_BYTES);

  /** @param mostPages of one chunk, which lies in one region */
  constructor({ regions }: MemoryLayout, mostPages: number) {
    this.#starts = new Set(regions.map(({ firstPage }) => firstPage));
    this.#mostPages = mostPages;
  }

  /** Copies the page. */
  add(page: number, bytes: Uint8Array): void {
    const at = this.#numbers.length * PAGE_SIZE_BYTES;
    if (at === this.#bytes.length) {
      const grown = new Uint8Array(at * 2);
      grown.set(this.#bytes);
      this.#bytes = grown;
    }
    this.#bytes.set(bytes, at);
    this.#numbers.push(page);
  }

  /** Hands on what was added since the last time. The bytes are good until the next page is added. */
  *take(): Generator<PageChunk> {
    const numbers = this.#numbers.splice(0);
    for (let from = 0; from < numbers.length;) {
      let to = from + 1;
      while (to < numbers.length && to - from < this.#mostPages && this.#goesOn(numbers, to)) to++;
      const bytes = this.#bytes.subarray(from * PAGE_SIZE_BYTES, to * PAGE_SIZE_BYTES);
      yield { firstPage: numbers[from]!, pageCount: to - from, bytes };
      from = to;
    }
  }

  /** Whether a page belongs with the one before it. */
  #goesOn(numbers: readonly number[], at: number): boolean {
    return numbers[at] === numbers[at - 1]! + 1 && !this.#starts.has(numbers[at]);
  }
}
