/**
 * Deltas set aside while the records below them are being looked for, and their application once the bottom is there.
 *
 * Records are met newest first; for each slot they form a list that is followed from the oldest:
 *
 *     slot 7:  delta (newest) <- delta <- delta (oldest) <- head        page: content below the oldest
 */

import { DecodeResult, describeDecodeResult } from '../kernels/decode-result.js';
import type { Kernels } from '../kernels/kernels.js';
import { CODEC_RUNS } from '../codec/codec-ids.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import type { PageRecords } from './frame.js';
import type { RecordRef } from './record-ref.js';

// Scratch in the kernels' memory. The first bytes stay free, as everywhere.
const PAGE_AT = 64;
const CONTROL_AT = PAGE_AT + PAGE_SIZE_BYTES;
const DATA_AT = CONTROL_AT + PAGE_SIZE_BYTES;
const SCRATCH_BYTES = DATA_AT + PAGE_SIZE_BYTES;

interface Delta {
  readonly ref: RecordRef;
  /** Into the stash's bytes: control, then data. */
  readonly offset: number;
  readonly controlLength: number;
  readonly dataLength: number;
  /** The next newer one of the same slot. */
  readonly newer: Delta | undefined;
}

export class DeltaStash {
  readonly #heads = new Map<number, Delta>();
  #bytes = new Uint8Array(64 * 1024);
  #used = 0;

  push(slot: number, ref: RecordRef, frame: PageRecords, record: number): void {
    const controlFrom = frame.controlOffsets[record]!;
    const controlLength = frame.controlOffsets[record + 1]! - controlFrom;
    const dataFrom = frame.dataOffsets[record]!;
    const dataLength = frame.dataOffsets[record + 1]! - dataFrom;
    const offset = this.#used;
    this.#used += controlLength + dataLength;
    if (this.#used > this.#bytes.length) this.#grow();
    this.#bytes.set(frame.body.subarray(controlFrom, controlFrom + controlLength), offset);
    this.#bytes.set(frame.body.subarray(dataFrom, dataFrom + dataLength), offset + controlLength);
    this.#heads.set(slot, { ref, offset, controlLength, dataLength, newer: this.#heads.get(slot) });
  }

  /**
   * Applies all deltas to the slots of `pages` (4096 bytes each) and is empty afterwards.
   * @param onMalformed makes the error for a delta that is none
   */
  apply(kernels: Kernels, pages: Uint8Array, onMalformed: (ref: RecordRef, reason: string) => Error): void {
    kernels.ensure(SCRATCH_BYTES);
    const memory = kernels.bytes();
    const page = memory.subarray(PAGE_AT, PAGE_AT + PAGE_SIZE_BYTES);
    for (const [slot, oldest] of this.#heads) {
      const out = pages.subarray(slot * PAGE_SIZE_BYTES, (slot + 1) * PAGE_SIZE_BYTES);
      page.set(out);
      for (let delta: Delta | undefined = oldest; delta !== undefined; delta = delta.newer) {
        const { offset, controlLength, dataLength } = delta;
        const dataFrom = offset + controlLength;
        memory.set(this.#bytes.subarray(offset, dataFrom), CONTROL_AT);
        memory.set(this.#bytes.subarray(dataFrom, dataFrom + dataLength), DATA_AT);
        const result = kernels.decodeInto(
          CODEC_RUNS,
          CONTROL_AT,
          controlLength,
          DATA_AT,
          dataLength,
          PAGE_AT,
        );
        if (result !== DecodeResult.Ok) throw onMalformed(delta.ref, describeDecodeResult(result));
      }
      out.set(page);
    }
    this.#heads.clear();
    this.#used = 0;
  }

  #grow(): void {
    const bytes = new Uint8Array(Math.max(this.#bytes.length * 2, this.#used));
    bytes.set(this.#bytes);
    this.#bytes = bytes;
  }
}
