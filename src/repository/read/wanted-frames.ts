/**
 * Records that a read still has to take, by the frame that they lie in. Packs are taken from the newest to the oldest: what a
 * record builds on was written before it, so nobody asks for a record of a pack that is done.
 */

import { frameOfRef, isRecordRef, packOfRef, type RecordRef } from '../../format/record-ref.js';

/** What is wanted of one frame. */
export interface WantedFrame {
  readonly frame: number;
  /** Who wants a record, and which: one entry for each in both arrays. */
  readonly slots: number[];
  readonly refs: RecordRef[];
}

export class WantedFrames {
  readonly #packs = new Map<number, Map<number, WantedFrame>>();
  /** The packs, ascending unless one came since. */
  #order: number[] = [];
  #isOrdered = true;

  /** @throws RangeError for a reference that is none to a record */
  want(slot: number, ref: RecordRef): void {
    if (!isRecordRef(ref)) throw new RangeError(`${ref} is not a record reference`);
    const pack = packOfRef(ref);
    let frames = this.#packs.get(pack);
    if (frames === undefined) {
      this.#packs.set(pack, (frames = new Map<number, WantedFrame>()));
      this.#order.push(pack);
      this.#isOrdered = false;
    }
    const frame = frameOfRef(ref);
    const wanted = frames.get(frame);
    if (wanted === undefined) frames.set(frame, { frame, slots: [slot], refs: [ref] });
    else {
      wanted.slots.push(slot);
      wanted.refs.push(ref);
    }
  }

  /** Packs of which something is wanted, from the newest on, at most so many. */
  newestPacks(count: number): readonly number[] {
    if (!this.#isOrdered) this.#order.sort((a, b) => a - b);
    this.#isOrdered = true;
    return this.#order.slice(-count).reverse();
  }

  /** Takes all that is wanted so far of the newest pack, in the order of its frames. */
  takeNewest(): readonly WantedFrame[] {
    const [pack] = this.newestPacks(1);
    if (pack === undefined) return [];
    const frames = [...this.#packs.get(pack)!.values()];
    this.#packs.delete(pack);
    this.#order.pop();
    return frames.sort((a, b) => a.frame - b.frame);
  }
}
