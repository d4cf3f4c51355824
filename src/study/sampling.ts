/**
 * Chooses the pages whose contents an analysis keeps, by page index alone, so that a page is kept each time
 * it is dirty.
 */

import { PAGE_SIZE_BYTES } from '../types.js';
import type { ObservedEpoch } from './subject.js';

const HASH = 0x9e3779b1;

/** The pages of `pages` that have a 1 in `hasContent`. */
export function keptPages(pages: Uint32Array, hasContent: Uint8Array): Uint32Array {
  return pages.filter((_, i) => hasContent[i] === 1);
}

/** True for one page in `oneIn`, a power of two. */
export function isSampled(page: number, oneIn: number): boolean {
  return ((Math.imul(page, HASH) >>> 8) & (oneIn - 1)) === 0;
}

/** The same epoch with a copy of the contents of only the sampled pages. */
export function thinned(epoch: ObservedEpoch, oneIn: number): ObservedEpoch {
  const positions: number[] = [];
  epoch.contentPages.forEach((page, i) => {
    if (isSampled(page, oneIn)) positions.push(i);
  });
  const gather = (bytes: Uint8Array): Uint8Array => {
    const kept = new Uint8Array(positions.length * PAGE_SIZE_BYTES);
    positions.forEach((position, i) =>
      kept.set(
        bytes.subarray(position * PAGE_SIZE_BYTES, (position + 1) * PAGE_SIZE_BYTES),
        i * PAGE_SIZE_BYTES,
      ),
    );
    return kept;
  };
  return {
    runMs: epoch.runMs,
    pages: epoch.pages,
    contentPages: Uint32Array.from(positions, (position) => epoch.contentPages[position]!),
    before: gather(epoch.before),
    after: gather(epoch.after),
  };
}
