/**
 * Decides which pages a checkpoint writes once more although they did not change (docs/format.md,
 * regrouping).
 *
 * Records of the same stretch of memory come to lie in as many packs as there are checkpoints, each with few
 * records a frame and deltas on deltas. When a segment takes over those of the level below, the records that
 * it leads to are brought together: the pages of the last 8 checkpoints that lie deep, those of the last 64
 * (512, ...) all.
 */

import { MERGE_FACTOR } from '../../format/index-policy.js';
import type { PageMap } from '../read/page-map.js';
import { packOfRef, ZERO_REF } from '../../format/record-ref.js';
import type { SegmentPlan } from './segment-plan.js';

/**
 * Most pages regrouped by one checkpoint. They are read, decoded and encoded on the main thread: about 0.1 ms
 * each with their bases.
 */
const MAX_REGROUPED_PAGES = 8192;
/**
 * On the first level only pages at this depth and deeper are regrouped: others take at most one record more
 * to read.
 */
const DEEP = 2;
/** Pages in a pack that has so many of them do not count as scattered. */
const LARGE_PACK_PAGES = 4096;
/** From this level on all pages are regrouped. */
export const WHOLE_REGROUP_RISE = 2;

/**
 * Share of the bytes which the last increments added that regrouping may spend. Each byte is regrouped once a
 * level at the most, so the share bounds the cost.
 */
const BUDGET_SHARE = 1 / 4;

/**
 * Bytes that may be stored by regrouping.
 * @param storedLately bytes that each of the newest increments added
 */
export function budgetOf({ rise }: SegmentPlan, storedLately: (count: number) => readonly number[]): number {
  const count = MERGE_FACTOR ** rise;
  const known = storedLately(count);
  if (known.length === 0) return 0;
  // Manifests may have been removed: those that are left speak for all.
  return (known.reduce((sum, bytes) => sum + bytes, 0) / known.length) * count * BUDGET_SHARE;
}

/**
 * @param map with the changes of this checkpoint in it
 * @returns ascending; at most `limit`, the deepest ones when there are more
 */
export function pagesToRegroup(map: PageMap, plan: SegmentPlan, limit = MAX_REGROUPED_PAGES): Uint32Array {
  if (plan.pages === null || plan.rise === 0) return new Uint32Array(0);
  const unchanged = plan.pages.filter((page) => map.refOf(page) !== ZERO_REF && !map.isChanged(page));
  const wanted =
    plan.rise < WHOLE_REGROUP_RISE
      ? unchanged.filter((page) => map.depthOf(page) >= DEEP)
      : scattered(map, unchanged);
  if (wanted.length <= limit) return wanted;
  return wanted
    .sort((a, b) => map.depthOf(b) - map.depthOf(a))
    .subarray(0, limit)
    .sort();
}

/** Leaves out pages that lie among many others already: those that came back to what they were in a base. */
function scattered(map: PageMap, pages: Uint32Array): Uint32Array {
  const pagesIn = new Map<number, number>();
  map.visitRuns((_, pageCount, ref) => {
    const pack = packOfRef(ref);
    pagesIn.set(pack, (pagesIn.get(pack) ?? 0) + pageCount);
  });
  return pages.filter(
    (page) => map.depthOf(page) > 0 || pagesIn.get(packOfRef(map.refOf(page)))! < LARGE_PACK_PAGES,
  );
}
