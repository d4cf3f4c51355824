/**
 * The references of the maps of many checkpoints of a chain, one after the other, each segment read once
 * where neighbours share it.
 */

import type { CallOptions } from '../../storage/backend.js';
import type { IndexEntries } from '../../format/index-segment.js';
import { loadSegment, type SegmentSource } from './load-map.js';
import type { Manifest } from '../../format/manifest.js';

/**
 * @param manifests of one chain, in order
 * @returns for each of them one reference a page, 0 for the zero page; the array is good until the next one
 *   is asked for
 * @throws REPO_DAMAGED, REPO_VERSION, and what the backend throws
 */
export async function* effectiveRefs(
  source: Omit<SegmentSource, 'pageSpan'>,
  manifests: readonly Manifest[],
  options: CallOptions,
): AsyncGenerator<Float64Array> {
  let known = new Map<number, IndexEntries>();
  let refs = new Float64Array(0);
  for (const { layout, segments } of manifests) {
    const { pageSpan } = layout;
    const now = new Map<number, IndexEntries>();
    if (refs.length === pageSpan) refs.fill(0);
    else refs = new Float64Array(pageSpan);
    for (const entry of [...segments].reverse()) {
      const entries = known.get(entry.seq) ?? (await loadSegment({ ...source, pageSpan }, entry, options));
      now.set(entry.seq, entries);
      entries.pages.forEach((page, i) => (refs[page] = entries.refs[i]!));
    }
    known = now;
    yield refs;
  }
}
