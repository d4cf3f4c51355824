/**
 * Second half of verification: decodes every record down to its page and compares the pages of each frame
 * with the frame's digest. That proves the whole way: a record applied to the wrong base gives another page,
 * and another digest.
 *
 * Records are taken in the order of writing, many at a time: what they build on is then mostly among them, or decoded for
 * many of them at once. Only the hashes of the pages are kept, until their frame is complete.
 */

import type { Kernels } from '../../kernels/kernels.js';
import type { CallOptions } from '../../storage/backend.js';
import type { ChainReader } from '../read/chain-reader.js';
import { damaged } from '../../records/damage.js';
import { FRAME_KIND_BLOB } from '../../format/frame.js';
import { digestOfHashes, hashOf } from '../../format/page-digest.js';
import { makeRef, packOfRef } from '../../format/record-ref.js';
import { BROKEN, type RecordTable } from './record-table.js';

export interface PagesCheck {
  readonly reader: ChainReader;
  readonly kernels: Kernels;
  /** Records of all packs, by number of the pack. Records that are found bad are marked BROKEN. */
  readonly tables: ReadonlyMap<number, RecordTable>;
  /** Throws on what is not about damage. */
  readonly onProblem: (key: string, error: unknown) => void;
  /** Records done. */
  readonly onRecords: (count: number) => void;
}

/** Records that are read together, 512 MiB of pages: each such window decodes the frames that it needs once. */
const WINDOW_RECORDS = 131_072;

/**
 * @returns true when frames are bad that `verifyPack` took for good
 * @throws what is not about damage: interruption, failures of the backend
 */
export async function verifyPages(check: PagesCheck, options: CallOptions): Promise<boolean> {
  const refs = Float64Array.from(readableRecords(check.tables)).sort();
  let isWorse = false;
  for (let from = 0; from < refs.length; from += WINDOW_RECORDS) {
    const window = refs.subarray(from, from + WINDOW_RECORDS);
    if (!(await hashRecords(window, check, options))) isWorse = true;
    check.onRecords(window.length);
  }
  for (const table of check.tables.values()) if (!compareDigests(table, check)) isWorse = true;
  return isWorse;
}

function* readableRecords(tables: ReadonlyMap<number, RecordTable>): Generator<number> {
  for (const { pack, depths } of tables.values()) {
    let at = 0;
    for (const [frame, { recordCount }] of pack.frames.entries())
      for (let record = 0; record < recordCount; record++, at++)
        if (depths[at] !== BROKEN) yield makeRef(pack.seq, frame, record);
  }
}

/** @returns false when some are bad; those are reported and marked */
async function hashRecords(refs: Float64Array, check: PagesCheck, options: CallOptions): Promise<boolean> {
  const isRead = new Uint8Array(refs.length);
  const page = (i: number, bytes: Uint8Array): void => {
    const { table, at } = placeOf(refs[i]!, check.tables);
    table.hashes[at] = hashOf(check.kernels, bytes);
    isRead[i] = 1;
  };
  try {
    await check.reader.readEach(refs, { page }, options);
    return true;
  } catch (error) {
    if (refs.length > 1) {
      // The halves of what is left are checked apart, to find the bad records and check the others.
      const left = refs.filter((_, i) => isRead[i] === 0);
      const half = (left.length + 1) >>> 1;
      const first = await hashRecords(left.subarray(0, half), check, options);
      const second = await hashRecords(left.subarray(half), check, options);
      return first && second;
    }
    const { table, at } = placeOf(refs[0]!, check.tables);
    check.onProblem(table.pack.key, error);
    table.depths[at] = BROKEN;
    return false;
  }
}

function placeOf(
  ref: number,
  tables: ReadonlyMap<number, RecordTable>,
): { readonly table: RecordTable; readonly at: number } {
  const table = tables.get(packOfRef(ref))!;
  return { table, at: table.find(ref)! };
}

/** @returns false when frames are bad that were not before */
function compareDigests(table: RecordTable, { kernels, onProblem }: PagesCheck): boolean {
  const { pack, depths, hashes, digests, badFrames } = table;
  const before = badFrames.size;
  for (const [frame, { kind, recordCount }] of pack.frames.entries()) {
    if (kind === FRAME_KIND_BLOB || badFrames.has(frame)) continue;
    const start = table.startOf(frame);
    const end = start + recordCount;
    const isRead = !depths.subarray(start, end).includes(BROKEN);
    if (isRead && digestOfHashes(kernels, hashes.subarray(start, end)) === digests[frame]) continue;
    badFrames.add(frame);
    if (isRead) onProblem(pack.key, damaged(pack.key, 'decoded pages differ from the digest', { frame }));
  }
  return badFrames.size === before;
}
