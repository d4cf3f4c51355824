/** All of a page map at once, which only tests want. */

import type { PageMap } from '../../src/repository/read/page-map.js';

/** One reference and one depth a page of the whole span. */
export function columnsOf(map: PageMap): { readonly refs: Float64Array; readonly depths: Uint8Array } {
  return map.columnsOf(Uint32Array.from({ length: map.pageSpan }, (_, page) => page));
}
