/**
 * Second half of verification: decodes every record down to its page and compares the pages of each frame
 * with the frame's digest. That proves the whole way: a record applied to the wrong base gives another page,
 * and another digest.
 *
 * Records are taken in the order of their pages, whatever pack they are in: the versions of a page build on
 * each other, and scattered deltas taken pack by pack would have each pack decode most of the base again. So
 * a frame of the base is decoded once or twice in all; only the hashes of the pages are kept until their
 * frame is complete.
 */

import type { Kernels } from '../../kernels/kernels.js';
import type { CallOptions } from '../../storage/backend.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import { VERIFY_WINDOW_PAGES, type ChainReader } from '../read/chain-reader.js';
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

/** Records are put in the order of stretches of pages this long, 8 MiB. */
const STRETCH_SHIFT = 11;

/**
 * @returns true when frames are bad that `verifyPack` took for good
 * @throws what is not about damage: interruption, failures of the backend
 */
export async function verifyPages(check: PagesCheck, options: CallOptions): Promise<boolean> {
  const refs = readableInPageOrder(check.tables);
  const pages = new Uint8Array(Math.min(refs.length, VERIFY_WINDOW_PAGES) * PAGE_SIZE_BYTES);
  let isWorse = false;
  for (let from = 0; from < refs.length; from += VERIFY_WINDOW_PAGES) {
    const window = refs.subarray(from, from + VERIFY_WINDOW_PAGES);
    if (!(await hashRecords(window, pages, check, options))) isWorse = true;
    check.onRecords(window.length);
  }
  for (const table of check.tables.values()) if (!compareDigests(table, check)) isWorse = true;
  return isWorse;
}

function readableInPageOrder(tables: ReadonlyMap<number, RecordTable>): Float64Array {
  let lastPage = 0;
  for (const { pages } of tables.values()) for (const page of pages) if (page > lastPage) lastPage = page;
  // Counting sort; inside a stretch it leaves the order of writing.
  const starts = new Uint32Array((lastPage >>> STRETCH_SHIFT) + 2);
  visitReadable(tables, (page) => starts[(page >>> STRETCH_SHIFT) + 1]!++);
  for (let i = 1; i < starts.length; i++) starts[i]! += starts[i - 1]!;
  const refs = new Float64Array(starts.at(-1)!);
  visitReadable(tables, (page, ref) => (refs[starts[page >>> STRETCH_SHIFT]!++] = ref));
  return refs;
}

function visitReadable(
  tables: ReadonlyMap<number, RecordTable>,
  visit: (page: number, ref: number) => void,
): void {
  for (const { pack, pages, depths } of tables.values()) {
    let at = 0;
    for (const [frame, { recordCount }] of pack.frames.entries()) {
      for (let record = 0; record < recordCount; record++, at++) {
        if (depths[at] !== BROKEN) visit(pages[at]!, makeRef(pack.seq, frame, record));
      }
    }
  }
}

/** @returns false when some are bad; those are reported and marked */
async function hashRecords(
  refs: Float64Array,
  scratch: Uint8Array,
  check: PagesCheck,
  options: CallOptions,
): Promise<boolean> {
  const pages = scratch.subarray(0, refs.length * PAGE_SIZE_BYTES);
  try {
    await check.reader.readPagesByRef(refs, pages, options);
  } catch (error) {
    if (refs.length > 1) {
      // The halves are checked apart, to find the bad records and check the others.
      const half = refs.length >>> 1;
      const first = await hashRecords(refs.subarray(0, half), scratch, check, options);
      const second = await hashRecords(refs.subarray(half), scratch, check, options);
      return first && second;
    }
    const { table, at } = placeOf(refs[0]!, check.tables);
    check.onProblem(table.pack.key, error);
    table.depths[at] = BROKEN;
    return false;
  }
  refs.forEach((ref, i) => {
    const { table, at } = placeOf(ref, check.tables);
    table.hashes[at] = hashOf(check.kernels, pages.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES));
  });
  return true;
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
