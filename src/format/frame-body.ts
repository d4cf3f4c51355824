/**
 * The body of a frame of page records, before the entropy stage (docs/format.md, frame body). n records, r of
 * them with codec `runs`:
 *
 *     4n  page indexes, ascending, as differences in 4 planes
 *     n   codecs
 *     2n  control lengths, 2 planes
 *     2n  data lengths, 2 planes
 *     8r  base references of the `runs` records, as differences in 8 planes; 0 = the zero page
 *     ..  control bytes of all records, in order
 *     ..  data bytes of all records, in order
 */

import { CODEC_RAW, CODEC_RUNS } from '../kernels/codec-ids.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import {
  putDeltas32,
  putDeltas64,
  putPlanes,
  takeDeltas32,
  takeDeltas64,
  takePlanes,
} from './byte-columns.js';
import { damaged } from '../records/damage.js';
import { MAX_PAYLOAD_BYTES } from './frame-limits.js';
import type { FramePlace } from './frame-place.js';
import { isRecordRef, MAX_RECORDS_PER_FRAME, ZERO_REF } from './record-ref.js';

/** What `encodeFrame` takes: one entry a record in each array. */
export interface FrameRecords {
  /** Strictly ascending. */
  readonly pages: Uint32Array;
  /** CODEC_RAW or CODEC_RUNS: zero pages and unchanged ones have no record. */
  readonly codecs: Uint8Array;
  readonly controlLengths: Uint16Array;
  readonly dataLengths: Uint16Array;
  /** Record that a `runs` record builds on, 0 = the zero page. 0 for `raw`. */
  readonly baseRefs: Float64Array;
  /** Not stored: a reader works them out. */
  readonly depths: Uint8Array;
  /** Control bytes of all records, in order, and nothing else. */
  readonly control: Uint8Array;
  readonly data: Uint8Array;
  /** XXH64 (seed 0) over the little-endian XXH64 (seed 0) of each decoded page, in order. */
  readonly digest: bigint;
}

/** A decoded frame; all views of `body` or small arrays beside it. */
export interface PageRecords {
  readonly count: number;
  readonly pages: Uint32Array;
  readonly codecs: Uint8Array;
  /** 0 for `raw`. */
  readonly baseRefs: Float64Array;
  /** count + 1 offsets into `body`. */
  readonly controlOffsets: Uint32Array;
  readonly dataOffsets: Uint32Array;
  readonly body: Uint8Array;
  readonly digest: bigint;
}

/** @throws RangeError when the records do not fit together */
export function encodeBody(records: FrameRecords): Uint8Array {
  const { pages, codecs, control, data } = records;
  const count = pages.length;
  checkRecords(records);
  const runsRefs = records.baseRefs.filter((_, i) => codecs[i] === CODEC_RUNS);
  const body = new Uint8Array(count * 9 + runsRefs.length * 8 + control.length + data.length);
  let at = putDeltas32(body, 0, pages);
  at = putPlanes(body, at, codecs, 1);
  at = putPlanes(body, at, records.controlLengths, 2);
  at = putPlanes(body, at, records.dataLengths, 2);
  at = putDeltas64(body, at, runsRefs);
  body.set(control, at);
  body.set(data, at + control.length);
  return body;
}

/** The inverse, for a body that is not trusted. Keeps `body`. @throws REPO_DAMAGED */
export function parseBody(body: Uint8Array, count: number, digest: bigint, place: FramePlace): PageRecords {
  const fail = (what: string, record?: number): Error =>
    damaged(place.key, what, record === undefined ? { frame: place.frame } : { frame: place.frame, record });
  if (body.length < count * 9) throw fail('body is shorter than its columns');
  const pages = takeDeltas32(body, 0, count);
  const codecs = body.slice(count * 4, count * 5);
  const controlLengths = takePlanes(body, count * 5, count, 2);
  const dataLengths = takePlanes(body, count * 7, count, 2);
  let runsCount = 0;
  for (let i = 0; i < count; i++) {
    const payload = controlLengths[i]! + dataLengths[i]!;
    if (codecs[i] === CODEC_RUNS) {
      runsCount++;
      if (controlLengths[i] === 0 || payload >= PAGE_SIZE_BYTES) throw fail('runs of a wrong length', i);
    } else if (codecs[i] === CODEC_RAW) {
      if (controlLengths[i] !== 0 || payload !== PAGE_SIZE_BYTES) throw fail('raw page of a wrong length', i);
    } else throw fail(`unknown codec ${codecs[i]!}`, i);
    if (i > 0 && pages[i]! <= pages[i - 1]!) throw fail('pages are not in ascending order', i);
  }
  const refsAt = count * 9;
  if (body.length < refsAt + runsCount * 8) throw fail('body is shorter than its columns');
  const runsRefs = takeDeltas64(body, refsAt, runsCount);
  const baseRefs = new Float64Array(count);
  for (let i = 0, run = 0; i < count; i++) {
    if (codecs[i] !== CODEC_RUNS) continue;
    const ref = runsRefs[run++]!;
    if (ref !== ZERO_REF && !isRecordRef(ref)) throw fail('base reference is out of bounds', i);
    baseRefs[i] = ref;
  }
  const controlAt = refsAt + runsCount * 8;
  const controlOffsets = offsets(controlAt, controlLengths);
  const dataOffsets = offsets(controlOffsets[count]!, dataLengths);
  if (dataOffsets[count] !== body.length) throw fail('lengths of the records do not add up to the body');
  return { count, pages, codecs, baseRefs, controlOffsets, dataOffsets, body, digest };
}

function offsets(start: number, lengths: Uint32Array): Uint32Array {
  const at = new Uint32Array(lengths.length + 1);
  at[0] = start;
  for (let i = 0; i < lengths.length; i++) at[i + 1] = at[i]! + lengths[i]!;
  return at;
}

function checkRecords(records: FrameRecords): void {
  const { pages, codecs, controlLengths, dataLengths, baseRefs, control, data } = records;
  const count = pages.length;
  if (count < 1 || count > MAX_RECORDS_PER_FRAME) {
    throw new RangeError(`frame of ${count} records: 1 to ${MAX_RECORDS_PER_FRAME}`);
  }
  if (
    [codecs, controlLengths, dataLengths, baseRefs, records.depths].some((column) => column.length !== count)
  ) {
    throw new RangeError('frame: columns of different length');
  }
  if (control.length + data.length > MAX_PAYLOAD_BYTES) {
    throw new RangeError(
      `frame of ${control.length + data.length} payload bytes, at most ${MAX_PAYLOAD_BYTES}`,
    );
  }
  let controlBytes = 0;
  let dataBytes = 0;
  for (let i = 0; i < count; i++) {
    controlBytes += controlLengths[i]!;
    dataBytes += dataLengths[i]!;
    const ref = baseRefs[i]!;
    const isRaw =
      codecs[i] === CODEC_RAW && controlLengths[i] === 0 && dataLengths[i] === PAGE_SIZE_BYTES && ref === 0;
    const isRuns =
      codecs[i] === CODEC_RUNS &&
      controlLengths[i]! > 0 &&
      controlLengths[i]! + dataLengths[i]! < PAGE_SIZE_BYTES &&
      (ref === ZERO_REF || isRecordRef(ref));
    if (!isRaw && !isRuns)
      throw new RangeError(`frame: record ${i} is neither a raw page nor runs with a base`);
    if (i > 0 && pages[i]! <= pages[i - 1]!) throw new RangeError('frame: pages are not in ascending order');
  }
  if (controlBytes !== control.length || dataBytes !== data.length) {
    throw new RangeError('frame: lengths of the records do not add up to the streams');
  }
}
