/**
 * What stands in the place of a record that nobody needs any more, in a pack that was thinned
 * (docs/format.md, forgetting): one run of one zero byte on the zero page. No writer stores such a record for
 * a page, because a page that is zero has none; so whoever is led to one reads a checkpoint that was
 * forgotten meanwhile.
 */

import { CODEC_RUNS } from '../kernels/codec-ids.js';
import type { PageRecords } from './frame.js';
import { ZERO_REF } from './record-ref.js';

/** Gap 0, length 1. */
export const BLANK_CONTROL: readonly number[] = [0, 1];
export const BLANK_DATA: readonly number[] = [0];

export function isBlankRecord(frame: PageRecords, record: number): boolean {
  if (frame.codecs[record] !== CODEC_RUNS || frame.baseRefs[record] !== ZERO_REF) return false;
  return (
    isPart(frame, frame.controlOffsets, record, BLANK_CONTROL) &&
    isPart(frame, frame.dataOffsets, record, BLANK_DATA)
  );
}

function isPart(
  { body }: PageRecords,
  offsets: Uint32Array,
  record: number,
  expected: readonly number[],
): boolean {
  const from = offsets[record]!;
  return (
    offsets[record + 1]! - from === expected.length && expected.every((byte, i) => body[from + i] === byte)
  );
}
