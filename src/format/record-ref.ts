/**
 * Addresses of page records (docs/format.md, record references). One number below 2^53, so that a map of all
 * pages is a Float64Array:
 *
 *     52 ........ 29 | 28 ........ 12 | 11 ........ 0
 *     pack, from 1   | frame in pack  | record in frame
 *
 * Order of numbers is order of writing: a base always has a smaller one, and lies in an earlier frame.
 */

export type RecordRef = number;

/** The zero page: no record. */
export const ZERO_REF: RecordRef = 0;

/**
 * Most deltas on top of each other. A page takes at most MAX_DELTA_DEPTH + 1 records to read; whoever writes
 * stores the whole page when the limit is reached. Higher saves space for pages that change a little each
 * time and makes every read of them slower, in proportion.
 */
export const MAX_DELTA_DEPTH = 8;

export const MAX_PACK_SEQ = 2 ** 24 - 1;
export const MAX_FRAMES_PER_PACK = 2 ** 17;
/** The bound is one less than the address could take, so that a count fits 12 bits. */
export const MAX_RECORDS_PER_FRAME = 2 ** 12 - 1;

const FRAME_UNIT = 2 ** 12;
const PACK_UNIT = 2 ** 29;
const REF_LIMIT = 2 ** 53;

export function makeRef(packSeq: number, frame: number, record: number): RecordRef {
  return packSeq * PACK_UNIT + frame * FRAME_UNIT + record;
}

export function packOfRef(ref: RecordRef): number {
  return Math.floor(ref / PACK_UNIT);
}

export function frameOfRef(ref: RecordRef): number {
  // Below 2^29 a number is safe for bit operations.
  return (ref % PACK_UNIT) >>> 12;
}

export function recordOfRef(ref: RecordRef): number {
  return (ref % PACK_UNIT) & (FRAME_UNIT - 1);
}

/** Identifies pack and frame: refs of the same frame have the same. */
export function frameKeyOfRef(ref: RecordRef): number {
  return Math.floor(ref / FRAME_UNIT);
}

export function frameKey(packSeq: number, frame: number): number {
  return packSeq * (PACK_UNIT / FRAME_UNIT) + frame;
}

/** A number that can be a reference to a record, whether or not the record exists. */
export function isRecordRef(ref: number): boolean {
  return (
    Number.isInteger(ref) && ref >= PACK_UNIT && ref < REF_LIMIT && recordOfRef(ref) < MAX_RECORDS_PER_FRAME
  );
}
