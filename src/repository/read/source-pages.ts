/** Pages that patch frames are held against, kept from the time they are read until the last of those frames is unpacked. */

import { PAGE_SIZE_BYTES } from '../../types.js';
import type { RecordRef } from '../../format/record-ref.js';

const CHUNK_PAGES = 256;
const NOT_READ = 255;

export class SourcePages {
  readonly #numbers = new Map<RecordRef, number>();
  readonly #chunks: Uint8Array[] = [];
  /** Patch frames below each page, NOT_READ until the page is there. */
  #patches = new Uint8Array(CHUNK_PAGES).fill(NOT_READ);

  get count(): number {
    return this.#numbers.size;
  }

  /** @returns the number of a new page, undefined when the record is wanted already */
  add(ref: RecordRef): number | undefined {
    if (this.#numbers.has(ref)) return undefined;
    const number = this.#numbers.size;
    this.#numbers.set(ref, number);
    if (number >= this.#patches.length) {
      const grown = new Uint8Array(this.#patches.length * 2).fill(NOT_READ);
      grown.set(this.#patches);
      this.#patches = grown;
    }
    return number;
  }

  /** @param patches patch frames with sources that lie between the page and whole ones, one after the other */
  put(number: number, page: Uint8Array, patches: number): void {
    const chunk = Math.floor(number / CHUNK_PAGES);
    const pages = (this.#chunks[chunk] ??= new Uint8Array(CHUNK_PAGES * PAGE_SIZE_BYTES));
    pages.set(page, (number % CHUNK_PAGES) * PAGE_SIZE_BYTES);
    this.#patches[number] = patches;
  }

  /** Whether all of the records have been read. */
  haveAll(refs: Float64Array): boolean {
    return refs.every((ref) => this.#patches[this.#numberOf(ref)] !== NOT_READ);
  }

  /** The largest of what `put` was given with the pages of these records. */
  patchesBelow(refs: Float64Array): number {
    return refs.reduce((most, ref) => Math.max(most, this.#patches[this.#numberOf(ref)]!), 0);
  }

  /** Copies the pages of records that have been read, 4096 bytes each. */
  copy(refs: Float64Array, into: Uint8Array): void {
    refs.forEach((ref, i) => {
      const number = this.#numberOf(ref);
      const from = (number % CHUNK_PAGES) * PAGE_SIZE_BYTES;
      const page = this.#chunks[Math.floor(number / CHUNK_PAGES)]!.subarray(from, from + PAGE_SIZE_BYTES);
      into.set(page, i * PAGE_SIZE_BYTES);
    });
  }

  #numberOf(ref: RecordRef): number {
    return this.#numbers.get(ref)!;
  }
}
