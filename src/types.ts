/**
 * Units and ids shared by every layer.
 *
 * A page is 4096 bytes. The core numbers the pages of a VM in one flat space (see
 * `hypervisor/memory-layout.ts`): a page index is a plain number below 2^32. Host addresses and file offsets
 * that may pass 2^53 are bigint and exist only at the FFI and format edges.
 */

export const PAGE_SIZE_BYTES = 4096;

/** JSON as the manifest and the worker messages carry it. */
export type Json = null | boolean | number | string | readonly Json[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: Json;
}

/**
 * Page runs: u32 pairs (first page index, page count), ascending, not overlapping, not adjacent.
 * The form in which dirty pages travel from the bitmap scan to the copy.
 */
export type PageRuns = Uint32Array;

/** Number of pages in `runs`. */
export function countRunPages(runs: PageRuns): number {
  let pageCount = 0;
  for (let i = 1; i < runs.length; i += 2) pageCount += runs[i]!;
  return pageCount;
}

/** The page indexes of `runs`, one by one, in order. Caller owns the result. */
export function expandRuns(runs: PageRuns): Uint32Array {
  const pages = new Uint32Array(countRunPages(runs));
  let at = 0;
  for (let i = 0; i < runs.length; i += 2) {
    const first = runs[i]!;
    const end = first + runs[i + 1]!;
    for (let page = first; page < end; page++) pages[at++] = page;
  }
  return pages;
}
