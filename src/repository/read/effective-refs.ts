/**
 * The references of the maps of many checkpoints of a chain, a window of memory after the other: neighbours
 * name the same segments, whose slices are decoded once a window.
 */

import type { CallOptions } from '../../storage/backend.js';
import type { Manifest } from '../../format/manifest.js';
import { INDEX_WINDOW_PAGES, PageIndex } from './page-index.js';
import { SegmentShelf, type SegmentSource } from './segment-reader.js';

/** Slices of some hundred segments, as they are named by all checkpoints of a long chain together. */
const CACHE_BYTES = 64 << 20;

/**
 * @param manifests of one chain
 * @returns references in no order, 0 for the zero page, each array of a part of one checkpoint; those of a
 *   checkpoint come several times
 * @throws REPO_DAMAGED, REPO_VERSION, and what the backend throws
 */
export async function* effectiveRefs(
  source: Omit<SegmentSource, 'pageSpan' | 'chain'>,
  manifests: readonly Manifest[],
  options: CallOptions,
): AsyncGenerator<Float64Array> {
  const shelf = new SegmentShelf(CACHE_BYTES);
  const indexes: PageIndex[] = [];
  for (const manifest of manifests) indexes.push(await PageIndex.open(source, manifest, options, shelf));
  const pageSpan = indexes.reduce((most, index) => Math.max(most, index.pageSpan), 0);
  for (let first = 0; first < pageSpan; first += INDEX_WINDOW_PAGES) {
    for (const index of indexes) {
      const end = Math.min(index.pageSpan, first + INDEX_WINDOW_PAGES);
      if (first < end) yield (await index.window(first, end, options)).refs;
    }
  }
}
