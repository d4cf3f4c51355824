/**
 * Builds pages from records that are taken one by one, newest first: a whole page is a bottom, a delta is set aside until the
 * bottom of its page is there.
 */

import { CODEC_RAW } from '../../kernels/codec-ids.js';
import type { Kernels } from '../../kernels/kernels.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import { isBlankRecord } from '../../format/blank-record.js';
import type { PageRecords } from '../../format/frame.js';
import { frameKeyOfRef, recordOfRef, ZERO_REF, type RecordRef } from '../../format/record-ref.js';
import { applyDeltas, BATCH_PAGES, DeltaStacks, type Stacked } from './delta-stack.js';

/** Where the pages go. Bytes are good until the call returns. */
export interface PageSink {
  readonly page: (slot: number, page: Uint8Array) => void;
  /**
   * What lies at the bottom of the page's deltas: a record that is whole, or a delta on the zero page.
   * @param deltas how many lie on it
   */
  readonly bottom?: ((slot: number, ref: RecordRef, deltas: number, page: Uint8Array) => void) | undefined;
}

export interface PageBuilderDeps {
  readonly kernels: () => Kernels;
  /** Gives zero pages for records that were blanked because nobody needed them, instead of failing. */
  readonly givesBlank: boolean;
  readonly damagedRecord: (ref: RecordRef, what: string) => Error;
}

interface Ready extends Stacked {
  readonly slot: number;
  /** The bottom's. */
  readonly ref: RecordRef;
}

export class PageBuilder {
  readonly #sink: PageSink;
  readonly #deps: PageBuilderDeps;
  readonly #stacks = new DeltaStacks();
  #ready: Ready[] = [];
  /** Copies of what was built: a sink may use the kernels, in whose memory that is. */
  #built = new Uint8Array(0);

  constructor(sink: PageSink, deps: PageBuilderDeps) {
    this.#sink = sink;
    this.#deps = deps;
  }

  /** Deltas that were set aside for a slot. */
  deltasOf(slot: number): number {
    return this.#stacks.countOf(slot);
  }

  /**
   * Takes the record that a slot needs next. The frame must not change before `flush`.
   * @returns the record needed after it, ZERO_REF when this one was the bottom
   * @throws what `damagedRecord` makes
   */
  take(slot: number, ref: RecordRef, frame: PageRecords): RecordRef {
    const { givesBlank, damagedRecord } = this.#deps;
    const record = recordOfRef(ref);
    if (record >= frame.count) throw damagedRecord(ref, 'the frame has no such record');
    if (frame.codecs[record] === CODEC_RAW) {
      const page = frame.body.subarray(frame.dataOffsets[record], frame.dataOffsets[record + 1]);
      this.#bottom(slot, ref, page);
      return ZERO_REF;
    }
    if (!givesBlank && isBlankRecord(frame, record))
      throw damagedRecord(ref, 'this record was given up, because no checkpoint needed it');
    const base = frame.baseRefs[record]!;
    // Strictly backwards, which also rules out a circle.
    if (base !== ZERO_REF && frameKeyOfRef(base) >= frameKeyOfRef(ref))
      throw damagedRecord(ref, 'the base does not lie before the record');
    this.#stacks.push(slot, ref, frame, record);
    if (base === ZERO_REF) this.#bottom(slot, ref, undefined);
    return base;
  }

  /** Hands out what is complete. @throws what `damagedRecord` makes */
  flush(): void {
    const ready = this.#ready;
    if (ready.length === 0) return;
    this.#ready = [];
    const { kernels, damagedRecord } = this.#deps;
    const { page, bottom } = this.#sink;
    if (bottom !== undefined) {
      // One on the zero page still has to be applied.
      const bottoms = ready.map((one) => ({ ...one, most: one.bottom === undefined ? 1 : 0 }));
      const built = this.#copyOf(applyDeltas(kernels(), bottoms, damagedRecord));
      for (const [i, { slot, ref, most, oldest }] of bottoms.entries())
        bottom(slot, ref, (oldest?.count ?? 0) - most, pageAt(built, i));
    }
    const built = this.#copyOf(applyDeltas(kernels(), ready, damagedRecord));
    for (const [i, { slot }] of ready.entries()) page(slot, pageAt(built, i));
  }

  #copyOf(pages: Uint8Array): Uint8Array {
    if (this.#built.length < pages.length) this.#built = new Uint8Array(pages.length);
    this.#built.set(pages);
    return this.#built;
  }

  #bottom(slot: number, ref: RecordRef, page: Uint8Array | undefined): void {
    const oldest = this.#stacks.take(slot);
    if (page !== undefined && oldest === undefined) {
      this.#sink.bottom?.(slot, ref, 0, page);
      this.#sink.page(slot, page);
      return;
    }
    this.#ready.push({ slot, ref, bottom: page, oldest });
    if (this.#ready.length === BATCH_PAGES) this.flush();
  }
}

function pageAt(pages: Uint8Array, i: number): Uint8Array {
  return pages.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES);
}
