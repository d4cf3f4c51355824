/**
 * Pages being read together, a slot each. Records are taken newest first: a whole page is copied to its slot,
 * a delta is set aside, and once every slot has its bottom the deltas are applied from the oldest to the
 * newest (`delta-stash.ts`).
 */

import { CODEC_RAW } from '../../kernels/codec-ids.js';
import type { Kernels } from '../../kernels/kernels.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import { isBlankRecord } from '../../format/blank-record.js';
import type { PageRecords } from '../../format/frame.js';
import { frameKeyOfRef, recordOfRef, ZERO_REF, type RecordRef } from '../../format/record-ref.js';
import { DeltaStash } from './delta-stash.js';

/** What lies at the bottom of each page's deltas: one entry a page in each array. */
export interface Bottoms {
  /** The record that is whole, or a delta on the zero page. */
  readonly refs: Float64Array;
  /** How many deltas lie on it. */
  readonly deltas: Uint8Array;
}

/** Where a window puts the bottoms of its pages. */
export interface BottomsTarget extends Bottoms {
  /**
   * Contents of the bottoms, 4096 bytes each. Without it they are all that is read: they take the place of
   * the pages.
   */
  readonly into: Uint8Array | undefined;
}

export interface PageWindowDeps {
  /** Gives zero pages for records that were blanked because nobody needed them, instead of failing. */
  readonly givesBlank: boolean;
  readonly damagedRecord: (ref: RecordRef, what: string) => Error;
}

export class PageWindow {
  readonly #into: Uint8Array;
  readonly #deps: PageWindowDeps;
  readonly #bottoms: BottomsTarget | undefined;
  /** Undefined when only the bottoms are asked for. */
  readonly #deltas: DeltaStash | undefined;
  /** Bottoms that are deltas on the zero page. */
  readonly #bottomDeltas = new DeltaStash();

  /** @param into 4096 bytes a slot */
  constructor(into: Uint8Array, bottoms: BottomsTarget | undefined, deps: PageWindowDeps) {
    this.#into = into;
    this.#bottoms = bottoms;
    this.#deps = deps;
    this.#deltas = bottoms === undefined || bottoms.into !== undefined ? new DeltaStash() : undefined;
  }

  get slotCount(): number {
    return this.#into.length / PAGE_SIZE_BYTES;
  }

  setZero(slot: number): void {
    this.#into.fill(0, slot * PAGE_SIZE_BYTES, (slot + 1) * PAGE_SIZE_BYTES);
  }

  /**
   * Takes the record that a slot needs next.
   * @param level records taken for this slot before
   * @returns the record to be taken for it next, ZERO_REF when this one was the bottom
   * @throws what `damagedRecord` makes
   */
  take(slot: number, ref: RecordRef, level: number, frame: PageRecords): RecordRef {
    const base = this.#takeRecord(slot, ref, frame);
    if (base !== ZERO_REF || this.#bottoms === undefined) return base;
    this.#bottoms.refs[slot] = ref;
    this.#bottoms.deltas[slot] = level;
    // One on the zero page still has to be applied.
    const record = recordOfRef(ref);
    if (frame.codecs[record] !== CODEC_RAW) this.#bottomDeltas.push(slot, ref, frame, record);
    return base;
  }

  /** Applies what was set aside, once every slot has its bottom. @throws what `damagedRecord` makes */
  finish(kernels: Kernels): void {
    const { damagedRecord } = this.#deps;
    const bottomsInto = this.#bottoms?.into;
    bottomsInto?.set(this.#into);
    this.#bottomDeltas.apply(kernels, bottomsInto ?? this.#into, damagedRecord);
    this.#deltas?.apply(kernels, this.#into, damagedRecord);
  }

  /**
   * Writes a whole page to its slot, or sets a delta aside.
   * @returns the record needed next, ZERO_REF when there is none
   */
  #takeRecord(slot: number, ref: RecordRef, frame: PageRecords): RecordRef {
    const { givesBlank, damagedRecord } = this.#deps;
    const record = recordOfRef(ref);
    if (record >= frame.count) throw damagedRecord(ref, 'the frame has no such record');
    if (frame.codecs[record] === CODEC_RAW) {
      const page = frame.body.subarray(frame.dataOffsets[record], frame.dataOffsets[record + 1]);
      this.#into.set(page, slot * PAGE_SIZE_BYTES);
      return ZERO_REF;
    }
    if (!givesBlank && isBlankRecord(frame, record))
      throw damagedRecord(ref, 'this record was given up, because no checkpoint needed it');
    const base = frame.baseRefs[record]!;
    // Strictly backwards, which also rules out a circle.
    if (base !== ZERO_REF && frameKeyOfRef(base) >= frameKeyOfRef(ref)) {
      throw damagedRecord(ref, 'the base does not lie before the record');
    }
    this.#deltas?.push(slot, ref, frame, record);
    if (base === ZERO_REF) this.setZero(slot);
    return base;
  }
}
