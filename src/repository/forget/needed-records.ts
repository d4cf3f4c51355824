/**
 * Remembers which records of a chain are needed, one bit each. A pack is opened when the first of its records
 * is entered.
 */

import type { CallOptions } from '../../storage/backend.js';
import { asDamagedObject, damaged } from '../../records/damage.js';
import type { OpenPack, PackReader } from '../read/pack-reader.js';
import { frameOfRef, makeRef, packOfRef, recordOfRef, ZERO_REF } from '../../format/record-ref.js';

/** The needed records of one pack. */
export class NeededOfPack {
  /** Number of the first record of each frame, and the total. A blob counts as one. */
  readonly #starts: Uint32Array;
  readonly #bits: Uint8Array;

  constructor(readonly pack: OpenPack) {
    this.#starts = new Uint32Array(pack.frames.length + 1);
    pack.frames.forEach(
      ({ recordCount }, i) => (this.#starts[i + 1] = this.#starts[i]! + Math.max(1, recordCount)),
    );
    this.#bits = new Uint8Array(Math.ceil(this.#starts[pack.frames.length]! / 8));
  }

  /** @returns false when there is no such record */
  add(frame: number, record: number): boolean {
    const start = this.#starts[frame];
    const end = this.#starts[frame + 1];
    if (start === undefined || end === undefined || start + record >= end) return false;
    const at = start + record;
    this.#bits[at >>> 3]! |= 1 << (at & 7);
    return true;
  }

  has(frame: number, record: number): boolean {
    const at = this.#starts[frame]! + record;
    return (this.#bits[at >>> 3]! & (1 << (at & 7))) !== 0;
  }

  /** How many records of the frame are needed. */
  countOf(frame: number): number {
    const count = this.#starts[frame + 1]! - this.#starts[frame]!;
    let needed = 0;
    for (let record = 0; record < count; record++) if (this.has(frame, record)) needed++;
    return needed;
  }

  hasAny(frame: number): boolean {
    const count = this.#starts[frame + 1]! - this.#starts[frame]!;
    for (let record = 0; record < count; record++) if (this.has(frame, record)) return true;
    return false;
  }
}

export class NeededRecords {
  /** Needed records by pack; null for a pack that cannot be opened. */
  readonly #packs = new Map<number, NeededOfPack | null>();

  /** @param onDamage a pack that is needed cannot be read, or is not what it should be */
  constructor(
    private readonly reader: PackReader,
    private readonly onDamage: (seq: number, message: string) => void,
  ) {}

  /** Undefined for a pack of which nothing is needed, and for one that cannot be opened. */
  of(seq: number): NeededOfPack | undefined {
    return this.#packs.get(seq) ?? undefined;
  }

  /** @throws what is not about damage */
  async add(refs: Float64Array | readonly number[], options: CallOptions): Promise<void> {
    let last = 0;
    const packs = new Set<number>();
    for (const ref of refs) {
      const seq = ref === ZERO_REF ? 0 : packOfRef(ref);
      if (seq === last) continue;
      last = seq;
      if (seq !== 0 && !this.#packs.has(seq)) packs.add(seq);
    }
    for (const seq of packs) this.#packs.set(seq, await this.#open(seq, options));
    let ofLast: NeededOfPack | null | undefined;
    last = 0;
    for (const ref of refs) {
      if (ref === ZERO_REF) continue;
      const seq = packOfRef(ref);
      if (seq !== last) ofLast = this.#packs.get(seq);
      last = seq;
      if (ofLast?.add(frameOfRef(ref), recordOfRef(ref)) === false) this.#notThere(ofLast.pack, ref);
    }
  }

  /** @throws what is not about damage */
  async addBlob(seq: number, frame: number, options: CallOptions): Promise<void> {
    if (!this.#packs.has(seq)) this.#packs.set(seq, await this.#open(seq, options));
    const needed = this.#packs.get(seq);
    if (needed?.add(frame, 0) === false) this.#notThere(needed.pack, makeRef(seq, frame, 0));
  }

  #notThere({ key, seq }: OpenPack, ref: number): void {
    const where = { frame: frameOfRef(ref), record: recordOfRef(ref) };
    this.onDamage(seq, damaged(key, 'a record that the pack does not have is referred to', where).message);
  }

  async #open(seq: number, options: CallOptions): Promise<NeededOfPack | null> {
    try {
      return new NeededOfPack(await this.reader.open(seq, options));
    } catch (error) {
      this.onDamage(seq, asDamagedObject('', error).message);
      return null;
    }
  }
}
