/**
 * Deltas set aside while the records below them are being looked for, and their application once the bottom
 * is there.
 *
 * Records are met newest first; for each slot they form a list that is followed from the oldest:
 *
 *     slot 7:  delta (newest) <- delta <- delta (oldest) <- head        page: content below the oldest
 */

import { DecodeResult, describeDecodeResult } from '../../kernels/decode-result.js';
import type { DecodeJob, Kernels } from '../../kernels/kernels.js';
import { CODEC_RUNS } from '../../kernels/codec-ids.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import type { PageRecords } from '../../format/frame.js';
import { MAX_DELTA_DEPTH, type RecordRef } from '../../format/record-ref.js';

/** Slots decoded in one call: their pages fit the second-level cache. */
const BATCH_SLOTS = 128;
/** The lowest record may be a delta too: one on the zero page. */
const BATCH_RECORDS = BATCH_SLOTS * (MAX_DELTA_DEPTH + 1);

// Scratch in the kernels' memory. The first bytes stay free, as everywhere. What is not used is not touched.
const PAGES_AT = PAGE_SIZE_BYTES;
const CODECS_AT = PAGES_AT + BATCH_SLOTS * PAGE_SIZE_BYTES;
const CONTROL_LENGTHS_AT = CODECS_AT + BATCH_RECORDS;
const DATA_LENGTHS_AT = CONTROL_LENGTHS_AT + BATCH_RECORDS * 2;
const POINTERS_AT = DATA_LENGTHS_AT + BATCH_RECORDS * 2;
const CONTROL_AT = POINTERS_AT + BATCH_RECORDS * 4;

/** Room made with the first delta: most windows have none. */
const FIRST_BYTES = 64 * 1024;

interface Delta {
  readonly ref: RecordRef;
  /** Into the stash's bytes: control, then data. */
  readonly offset: number;
  readonly controlLength: number;
  readonly dataLength: number;
  /** The next newer one of the same slot. */
  readonly newer: Delta | undefined;
}

/** A delta and the pointer of the page it is applied to. */
interface Placed {
  readonly delta: Delta;
  readonly page: number;
}

export class DeltaStash {
  readonly #heads = new Map<number, Delta>();
  #bytes = new Uint8Array(0);
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
    const heads = [...this.#heads];
    for (let from = 0; from < heads.length; from += BATCH_SLOTS) {
      const batch = heads.slice(from, from + BATCH_SLOTS);
      const deltas: Placed[] = [];
      batch.forEach(([, oldest], i) => {
        for (let delta: Delta | undefined = oldest; delta !== undefined; delta = delta.newer)
          deltas.push({ delta, page: PAGES_AT + i * PAGE_SIZE_BYTES });
      });
      const job = this.#place(kernels, deltas);
      const memory = kernels.bytes();
      const pageOf = (slot: number): Uint8Array =>
        pages.subarray(slot * PAGE_SIZE_BYTES, (slot + 1) * PAGE_SIZE_BYTES);
      batch.forEach(([slot], i) => memory.set(pageOf(slot), PAGES_AT + i * PAGE_SIZE_BYTES));
      const { result, record } = kernels.decodePages(job);
      if (result !== DecodeResult.Ok)
        throw onMalformed(deltas[record]!.delta.ref, describeDecodeResult(result));
      batch.forEach(([slot], i) => {
        const at = PAGES_AT + i * PAGE_SIZE_BYTES;
        pageOf(slot).set(memory.subarray(at, at + PAGE_SIZE_BYTES));
      });
    }
    this.#heads.clear();
    this.#used = 0;
  }

  /** Lays deltas out in the kernels' memory as `decodePages` wants them. */
  #place(kernels: Kernels, deltas: readonly Placed[]): DecodeJob {
    const controlBytes = deltas.reduce((sum, { delta }) => sum + delta.controlLength, 0);
    const dataBytes = deltas.reduce((sum, { delta }) => sum + delta.dataLength, 0);
    const dataFrom = CONTROL_AT + controlBytes;
    kernels.ensure(dataFrom + dataBytes);
    const memory = kernels.bytes();
    const codecs = memory.subarray(CODECS_AT, CODECS_AT + deltas.length);
    const controlLengths = new Uint16Array(memory.buffer, CONTROL_LENGTHS_AT, deltas.length);
    const dataLengths = new Uint16Array(memory.buffer, DATA_LENGTHS_AT, deltas.length);
    const pointers = new Uint32Array(memory.buffer, POINTERS_AT, deltas.length);
    codecs.fill(CODEC_RUNS);
    let controlAt = CONTROL_AT;
    let dataAt = dataFrom;
    deltas.forEach(({ delta, page }, i) => {
      const { offset, controlLength, dataLength } = delta;
      controlLengths[i] = controlLength;
      dataLengths[i] = dataLength;
      pointers[i] = page;
      memory.set(this.#bytes.subarray(offset, offset + controlLength), controlAt);
      memory.set(this.#bytes.subarray(offset + controlLength, offset + controlLength + dataLength), dataAt);
      controlAt += controlLength;
      dataAt += dataLength;
    });
    return {
      count: deltas.length,
      codecs: CODECS_AT,
      controlLengths: CONTROL_LENGTHS_AT,
      dataLengths: DATA_LENGTHS_AT,
      pages: POINTERS_AT,
      control: CONTROL_AT,
      controlBytes,
      data: dataFrom,
      dataBytes,
    };
  }

  #grow(): void {
    const bytes = new Uint8Array(Math.max(FIRST_BYTES, this.#bytes.length * 2, this.#used));
    bytes.set(this.#bytes);
    this.#bytes = bytes;
  }
}
