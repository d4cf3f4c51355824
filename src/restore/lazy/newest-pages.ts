/** Of pages that are gone through once, those with the newest records. */

import { ZERO_REF, type RecordRef } from '../../format/record-ref.js';

/** Times as many as are wanted are collected before the older ones are thrown away. */
const SLACK = 16;

export class NewestPages {
  readonly #limit: number;
  readonly #pages: Uint32Array;
  readonly #refs: Float64Array;
  #count = 0;
  /** References up to this one are too old, whatever comes. */
  #floor = ZERO_REF;

  constructor(limit: number) {
    this.#limit = limit;
    this.#pages = new Uint32Array(limit * SLACK);
    this.#refs = new Float64Array(limit * SLACK);
  }

  add(page: number, ref: RecordRef): void {
    if (ref <= this.#floor) return;
    if (this.#count === this.#pages.length) {
      this.#cut();
      if (ref <= this.#floor) return;
    }
    this.#pages[this.#count] = page;
    this.#refs[this.#count++] = ref;
  }

  /** Those whose reference is above `floor`, the newest first, at most as many as are wanted. */
  take(floor: RecordRef): Uint32Array {
    const slots = Array.from({ length: this.#count }, (_, i) => i).filter((i) => this.#refs[i]! > floor);
    slots.sort((a, b) => this.#refs[b]! - this.#refs[a]!);
    return Uint32Array.from(slots.slice(0, this.#limit), (i) => this.#pages[i]!);
  }

  #cut(): void {
    const sorted = this.#refs.slice(0, this.#count).sort();
    this.#floor = sorted[this.#count - this.#limit - 1]!;
    let kept = 0;
    for (let i = 0; i < this.#count; i++) {
      if (this.#refs[i]! <= this.#floor) continue;
      this.#pages[kept] = this.#pages[i]!;
      this.#refs[kept++] = this.#refs[i]!;
    }
    this.#count = kept;
  }
}
