/** Pages whose records differ between two checkpoints of one chain. */

import { DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import type { PageMap } from './page-map.js';

/**
 * Adds them to `into`: all whose content differs, and those whose record was written once more. Maps of one layout.
 */
export function addDifferingPages(a: PageMap, b: PageMap, into: DirtyBitmap): void {
  a.visitDiffering(b, (page) => into.set(page));
}

/** Caller owns it. */
export function differingPages(a: PageMap, b: PageMap): DirtyBitmap {
  const found = new DirtyBitmap(a.pageSpan);
  addDifferingPages(a, b, found);
  return found;
}
