/**
 * The dirty ring of one vCPU, which the kernel fills and the VMM empties (Documentation/virt/kvm/api.rst,
 * KVM_CAP_DIRTY_LOG_RING). An entry goes from empty to dirty by the kernel, to harvested by us, and back to
 * empty by `KvmMachine.resetDirtyRings`, which also write-protects its page again. A ring that is nearly full
 * stops the vCPU. The kernel keeps a reserve for what is still on its way then, and writes on beyond the end
 * when that is not enough (it warns in its log; seen on 6.18 with a ring of 256 entries). A ring without an
 * empty entry is therefore taken for overrun.
 */

import { RING_ENTRY_BYTES, RING_ENTRY_DIRTY, RING_ENTRY_RESET } from './constants.js';

const WORDS = RING_ENTRY_BYTES / 4;

export class DirtyRing {
  readonly #words: Int32Array;
  readonly #entryCount: number;
  #next = 0;
  #isOverrun = false;

  /** `memory` is the mapped ring. */
  constructor(memory: ArrayBuffer) {
    this.#words = new Int32Array(memory);
    this.#entryCount = memory.byteLength / RING_ENTRY_BYTES;
  }

  /** True once entries may have been lost; for good, since where the kernel goes on is not known. */
  get isOverrun(): boolean {
    return this.#isOverrun;
  }

  /** Visits and marks as harvested what is dirty. @returns how many entries */
  harvest(visit: (slot: number, page: number) => void): number {
    let count = 0;
    for (; count < this.#entryCount; count++) {
      const at = this.#next * WORDS;
      // The kernel writes the flags last; atomics keep their order with the rest of the entry.
      if ((Atomics.load(this.#words, at) & RING_ENTRY_DIRTY) === 0) break;
      const slot = this.#words[at + 1]! & 0xffff;
      visit(slot, (this.#words[at + 2]! >>> 0) + this.#words[at + 3]! * 2 ** 32);
      Atomics.store(this.#words, at, RING_ENTRY_RESET);
      this.#next = (this.#next + 1) % this.#entryCount;
    }
    if (count === this.#entryCount) this.#isOverrun = true;
    return count;
  }
}
