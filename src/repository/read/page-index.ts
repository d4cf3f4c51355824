/**
 * Tells where the pages of a committed checkpoint lie, without its whole index in memory: it opens the
 * directories of the segments, and reads the slices that a question needs.
 *
 *     pages asked for:        |-----------|
 *     segment 9 (newest)   [ ][  x  ][       ]       slices; the newest entry of a page counts
 *     segment 3          [     x     ][    x    ]
 */

import type { CallOptions } from '../../storage/backend.js';
import { damaged } from '../../records/damage.js';
import { MAX_SEGMENTS } from '../../format/index-policy.js';
import type { IndexEntries } from '../../format/index-slice.js';
import { manifestKey, type Manifest } from '../../format/manifest.js';
import type { RecordRef } from '../../format/record-ref.js';
import { SegmentShelf, type SegmentReader, type SegmentSource } from './segment-reader.js';

/**
 * For decoded slices. One window of all 57 segments that a checkpoint may have takes 6 MiB; of a checkpoint
 * that has fewer, those of the windows before stay as well.
 */
const CACHE_BYTES = 8 << 20;
/** Segments opened together, and slices read together: there are some twenty in a long chain. */
const READS_AT_A_TIME = 8;
/** Pages of a window where all of them are gone through; a multiple of the stretches of a page map. */
export const INDEX_WINDOW_PAGES = 65_536;

/** One place a page in each array; a page without a record has 0 in both. */
export interface IndexWindow {
  readonly firstPage: number;
  readonly refs: Float64Array;
  readonly depths: Uint8Array;
}

export class PageIndex {
  /** Newest first. */
  readonly #segments: readonly SegmentReader[];

  private constructor(
    readonly pageSpan: number,
    segments: readonly SegmentReader[],
  ) {
    this.#segments = segments;
  }

  /**
   * @param shelf shared by checkpoints of one chain that are read together
   * @throws REPO_DAMAGED, REPO_VERSION, and what the backend throws
   */
  static async open(
    from: Omit<SegmentSource, 'pageSpan' | 'chain'>,
    manifest: Manifest,
    options: CallOptions,
    shelf: SegmentShelf = new SegmentShelf(CACHE_BYTES),
  ): Promise<PageIndex> {
    const { layout, segments, chain } = manifest;
    if (segments.length > MAX_SEGMENTS)
      throw damaged(manifestKey(manifest), 'more index segments than the format allows');
    const source = { ...from, chain, pageSpan: layout.pageSpan };
    const open = await inTurns(segments, (entry) => shelf.segment(source, entry, options));
    return new PageIndex(layout.pageSpan, open);
  }

  /**
   * The references of pages, in their order, which costs least when it is ascending. Caller owns the result.
   * @throws RangeError for a page outside the span; REPO_DAMAGED, and what the backend throws
   */
  async refsOf(pages: Uint32Array, options: CallOptions = {}): Promise<Float64Array> {
    const refs = new Float64Array(pages.length);
    let open = new Uint32Array(pages.length);
    for (let slot = 0; slot < pages.length; slot++) {
      if (pages[slot]! >= this.pageSpan)
        throw new RangeError(`page ${pages[slot]!} of a memory of ${this.pageSpan} pages`);
      open[slot] = slot;
    }
    for (const segment of this.#segments) {
      if (open.length === 0) break;
      open = await lookUp(segment, pages, open, refs, options);
    }
    return refs;
  }

  /** References and depths of pages [firstPage, endPage). Caller owns them. @throws as `refsOf` */
  async window(firstPage: number, endPage: number, options: CallOptions = {}): Promise<IndexWindow> {
    if (firstPage < 0 || endPage > this.pageSpan)
      throw new RangeError(`pages ${firstPage} to ${endPage} of a memory of ${this.pageSpan} pages`);
    return windowOf(await this.#slicesIn(firstPage, endPage, options), firstPage, endPage);
  }

  /**
   * All pages that have an entry, window by window, in order: a window that has none is left out.
   * @throws as `refsOf`
   */
  async *windows(options: CallOptions = {}): AsyncGenerator<IndexWindow, void> {
    for (let first = 0; first < this.pageSpan; first += INDEX_WINDOW_PAGES) {
      const end = Math.min(this.pageSpan, first + INDEX_WINDOW_PAGES);
      const slices = await this.#slicesIn(first, end, options);
      if (slices.some(({ pages }) => (pages[placeOf(pages, first)] ?? end) < end))
        yield windowOf(slices, first, end);
    }
  }

  /** Those of older segments first. */
  async #slicesIn(
    firstPage: number,
    endPage: number,
    options: CallOptions,
  ): Promise<readonly IndexEntries[]> {
    const oldestFirst = [...this.#segments].reverse();
    const found = await inTurns(oldestFirst, (segment) => segment.slicesIn(firstPage, endPage, options));
    return found.flat();
  }
}

function windowOf(slices: readonly IndexEntries[], firstPage: number, endPage: number): IndexWindow {
  const refs = new Float64Array(endPage - firstPage);
  const depths = new Uint8Array(endPage - firstPage);
  for (const { pages, refs: from, depths: deep } of slices) {
    for (let i = placeOf(pages, firstPage); i < pages.length && pages[i]! < endPage; i++) {
      const at = pages[i]! - firstPage;
      refs[at] = from[i]!;
      depths[at] = deep[i]!;
    }
  }
  return { firstPage, refs, depths };
}

/** Enters what the segment says of the pages. @returns the slots of which it says nothing */
async function lookUp(
  segment: SegmentReader,
  pages: Uint32Array,
  open: Uint32Array,
  refs: Float64Array,
  options: CallOptions,
): Promise<Uint32Array<ArrayBuffer>> {
  let slice: IndexEntries | undefined;
  const left: number[] = [];
  for (const slot of open) {
    const page = pages[slot]!;
    // Neighbours lie in one slice, which knows no page before its first one and none behind its last one.
    if (slice === undefined || page < slice.pages[0]! || page > slice.pages.at(-1)!)
      slice = await segment.sliceOf(page, options);
    const ref = slice === undefined ? undefined : refIn(slice, page);
    if (ref === undefined) left.push(slot);
    else refs[slot] = ref;
  }
  return Uint32Array.from(left);
}

/** Undefined when the slice has no entry for the page. */
function refIn({ pages, refs }: IndexEntries, page: number): RecordRef | undefined {
  const at = placeOf(pages, page);
  return pages[at] === page ? refs[at] : undefined;
}

/** Place of the first page that is not below `page`. */
function placeOf(pages: Uint32Array, page: number): number {
  let [from, to] = [0, pages.length];
  while (from < to) {
    const middle = (from + to) >>> 1;
    if (pages[middle]! < page) from = middle + 1;
    else to = middle;
  }
  return from;
}

async function inTurns<T, R>(all: readonly T[], work: (one: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (let from = 0; from < all.length; from += READS_AT_A_TIME)
    results.push(...(await Promise.all(all.slice(from, from + READS_AT_A_TIME).map(work))));
  return results;
}
