/**
 * Decides which pages go into the index segment of a checkpoint: the policy of `index-policy.ts` applied to a
 * map.
 */

import { DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import { sameLayout, type MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { CallOptions } from '../../storage/backend.js';
import { planIndex, type IndexPlan } from '../../format/index-policy.js';
import type { IndexEntries } from '../../format/index-slice.js';
import { SegmentShelf, type SegmentSource } from '../read/segment-reader.js';
import { BOTTOM_LEVEL, type Manifest, type SegmentEntry } from '../../format/manifest.js';
import type { PageMap } from '../read/page-map.js';
import { expandRuns } from '../../types.js';

export interface SegmentPlan {
  readonly level: number;
  /** See `IndexPlan`. */
  readonly rise: number;
  /** Pages of the segment, ascending; null when no segment is needed. */
  readonly pages: Uint32Array | null;
  /** Segments of the parent that stay, newest first. */
  readonly kept: readonly SegmentEntry[];
}

/**
 * The values of merged entries need not be read: the map has the newest of every page. Only the pages are.
 * @throws REPO_DAMAGED when a segment to be merged cannot be read, and what the backend throws
 */
export async function planSegment(
  map: PageMap,
  parent: Manifest | null,
  layout: MemoryLayout,
  source: SegmentSource,
  options: CallOptions,
): Promise<SegmentPlan> {
  const changed = map.changedPages();
  const sameNumbers = parent !== null && sameLayout(parent.layout, layout);
  if (sameNumbers && changed.length === 0) return { level: 0, rise: 0, pages: null, kept: parent.segments };
  const plan = planIndex(parent?.segments ?? [], changed.length, sameNumbers);
  return { ...plan, pages: await pagesOf(plan, changed, map, source, options) };
}

/**
 * What `planSegment` will say of the next checkpoint, as far as it can be told before it is known which pages change.
 * @param map of `parent`, without changes, in `layout`
 * @throws as `planSegment`
 */
export async function planNextSegment(
  map: PageMap,
  parent: Manifest,
  layout: MemoryLayout,
  source: SegmentSource,
  options: CallOptions,
): Promise<SegmentPlan> {
  const plan = planIndex(parent.segments, 0, sameLayout(parent.layout, layout));
  if (plan.rise === 0) return { ...plan, pages: null };
  return { ...plan, pages: await pagesOf(plan, new Uint32Array(0), map, source, options) };
}

async function pagesOf(
  { level, merged }: IndexPlan,
  changed: Uint32Array,
  map: PageMap,
  source: SegmentSource,
  options: CallOptions,
): Promise<Uint32Array> {
  if (level === BOTTOM_LEVEL) return pagesWithRecord(map);
  if (merged.length === 0) return changed;
  const all = new DirtyBitmap(map.pageSpan);
  for (const page of changed) all.set(page);
  const shelf = new SegmentShelf(1);
  for (const entry of merged) {
    const segment = await shelf.segment(source, entry, options);
    for await (const { pages } of segment.slices(options)) for (const page of pages) all.set(page);
  }
  return expandRuns(all.toRuns());
}

/** The entries of a segment for `pages`, as the map has them. */
export function entriesOf(map: PageMap, pages: Uint32Array): IndexEntries {
  return { pages, ...map.columnsOf(pages) };
}

function pagesWithRecord(map: PageMap): Uint32Array {
  const pages = new Uint32Array(map.countRecords());
  let at = 0;
  map.visitRuns((firstPage, pageCount) => {
    for (let page = firstPage; page < firstPage + pageCount; page++) pages[at++] = page;
  });
  return pages;
}
