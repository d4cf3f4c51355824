/**
 * Deltas set aside while the records below them are being looked for, and their application once the bottom is there.
 *
 * Records are met newest first; for each slot they form a list that is followed from the oldest:
 *
 *     slot 7:  delta (newest) <- delta <- delta (oldest) <- top of the stack        page: content below the oldest
 */

import { DecodeResult, describeDecodeResult } from '../../kernels/decode-result.js';
import type { DecodeJob, Kernels } from '../../kernels/kernels.js';
import { CODEC_RUNS } from '../../kernels/codec-ids.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import type { PageRecords } from '../../format/frame.js';
import { MAX_DELTA_DEPTH, type RecordRef } from '../../format/record-ref.js';

/** Pages built in one call: they fit the second-level cache. */
export const BATCH_PAGES = 128;
/** The lowest record may be a delta too: one on the zero page. */
const BATCH_RECORDS = BATCH_PAGES * (MAX_DELTA_DEPTH + 1);

// Scratch in the kernels' memory. The first bytes stay free, as everywhere. What is not used is not touched.
const PAGES_AT = PAGE_SIZE_BYTES;
const CODECS_AT = PAGES_AT + BATCH_PAGES * PAGE_SIZE_BYTES;
const CONTROL_LENGTHS_AT = CODECS_AT + BATCH_RECORDS;
const DATA_LENGTHS_AT = CONTROL_LENGTHS_AT + BATCH_RECORDS * 2;
const POINTERS_AT = DATA_LENGTHS_AT + BATCH_RECORDS * 2;
const CONTROL_AT = POINTERS_AT + BATCH_RECORDS * 4;

/** Bytes of deltas that are allocated together. */
const SLAB_BYTES = 64 * 1024;

/** One delta, and through `newer` those that lie on it. */
export interface Delta {
  readonly ref: RecordRef;
  readonly control: Uint8Array;
  readonly data: Uint8Array;
  readonly newer: Delta | undefined;
  /** Deltas from this one up. */
  readonly count: number;
}

export class DeltaStacks {
  readonly #tops = new Map<number, Delta>();
  #slab = new Uint8Array(0);
  #used = 0;

  /** Deltas that a slot has so far. */
  countOf(slot: number): number {
    return this.#tops.get(slot)?.count ?? 0;
  }

  push(slot: number, ref: RecordRef, frame: PageRecords, record: number): void {
    const newer = this.#tops.get(slot);
    this.#tops.set(slot, {
      ref,
      control: this.#keep(
        frame.body.subarray(frame.controlOffsets[record], frame.controlOffsets[record + 1]),
      ),
      data: this.#keep(frame.body.subarray(frame.dataOffsets[record], frame.dataOffsets[record + 1])),
      newer,
      count: (newer?.count ?? 0) + 1,
    });
  }

  /** The oldest delta of a slot, which has none any more afterwards. */
  take(slot: number): Delta | undefined {
    const oldest = this.#tops.get(slot);
    this.#tops.delete(slot);
    return oldest;
  }

  #keep(bytes: Uint8Array): Uint8Array {
    if (this.#used + bytes.length > this.#slab.length) {
      this.#slab = new Uint8Array(Math.max(SLAB_BYTES, bytes.length));
      this.#used = 0;
    }
    const kept = this.#slab.subarray(this.#used, this.#used + bytes.length);
    kept.set(bytes);
    this.#used += bytes.length;
    return kept;
  }
}

/** A page to be built: what lies at its bottom, undefined for the zero page, and the deltas from the oldest on. */
export interface Stacked {
  readonly bottom: Uint8Array | undefined;
  readonly oldest: Delta | undefined;
  /** Apply no more than so many deltas. */
  readonly most?: number;
}

/**
 * Builds at most BATCH_PAGES pages in the kernels' memory.
 * @param onMalformed makes the error for a delta that is none
 * @returns the pages, one after the other, good until the kernels are used again
 */
export function applyDeltas(
  kernels: Kernels,
  stacked: readonly Stacked[],
  onMalformed: (ref: RecordRef, reason: string) => Error,
): Uint8Array {
  const deltas: Delta[] = [];
  const places: number[] = [];
  let [controlBytes, dataBytes] = [0, 0];
  stacked.forEach(({ oldest, most = MAX_DELTA_DEPTH + 1 }, i) => {
    let left = most;
    for (let delta = oldest; delta !== undefined && left > 0; delta = delta.newer, left--) {
      deltas.push(delta);
      places.push(PAGES_AT + i * PAGE_SIZE_BYTES);
      controlBytes += delta.control.length;
      dataBytes += delta.data.length;
    }
  });
  const dataFrom = CONTROL_AT + controlBytes;
  kernels.ensure(dataFrom + dataBytes);
  const memory = kernels.bytes();
  stacked.forEach(({ bottom }, i) => {
    const at = PAGES_AT + i * PAGE_SIZE_BYTES;
    if (bottom === undefined) memory.fill(0, at, at + PAGE_SIZE_BYTES);
    else memory.set(bottom, at);
  });
  const controlLengths = new Uint16Array(memory.buffer, CONTROL_LENGTHS_AT, deltas.length);
  const dataLengths = new Uint16Array(memory.buffer, DATA_LENGTHS_AT, deltas.length);
  memory.fill(CODEC_RUNS, CODECS_AT, CODECS_AT + deltas.length);
  new Uint32Array(memory.buffer, POINTERS_AT, deltas.length).set(places);
  let controlAt = CONTROL_AT;
  let dataAt = dataFrom;
  deltas.forEach(({ control, data }, i) => {
    controlLengths[i] = control.length;
    dataLengths[i] = data.length;
    memory.set(control, controlAt);
    memory.set(data, dataAt);
    controlAt += control.length;
    dataAt += data.length;
  });
  const job: DecodeJob = {
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
  const { result, record } = kernels.decodePages(job);
  if (result !== DecodeResult.Ok) throw onMalformed(deltas[record]!.ref, describeDecodeResult(result));
  return kernels.bytes().subarray(PAGES_AT, PAGES_AT + stacked.length * PAGE_SIZE_BYTES);
}
