/**
 * Tells for each page of the flat space which record holds it, and how deep that record's chain of deltas is.
 *
 * Changes are provisional until `commit()`; `rollback()` takes them back. So the map of a long-running
 * watcher follows what is committed, and a failed checkpoint leaves no trace in it.
 *
 *     committed   chunk | chunk |   -   | chunk         in few bytes a page, never changed
 *     changed             chunk                         replaces the committed one; thrown away to roll back
 */

import { CheckpointError } from '../../errors.js';
import { MAX_PAGE_SPAN, type MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { RecordRef } from '../../format/record-ref.js';
import {
  CHUNK_PAGES,
  chunkOf,
  depthIn,
  expanded,
  refIn,
  visitRuns,
  type MapChunk,
  type PlainChunk,
  type VisitRun,
} from './map-chunk.js';

/** Pages of one chunk for which it is expanded rather than searched. */
const MANY_PAGES = 128;
/** Changed chunks in their plain form, 36 MiB: a first checkpoint changes all there are. */
const MOST_PLAIN_CHANGED = 4096;

class ChangedChunk {
  /** A bit a page, LSB first. */
  readonly bits = new Uint32Array(CHUNK_PAGES / 32);
  /** The form of `chunk` that may be written to; undefined once it was made small. */
  plain: PlainChunk | undefined;

  constructor(public chunk: MapChunk) {}
}

export class PageMap {
  readonly #committed: MapChunk[] = [];
  /** By number of the chunk. */
  readonly #changed = new Map<number, ChangedChunk>();
  /** Numbers of those that are in their plain form, the first one first. */
  readonly #plain = new Set<number>();
  #changedCount = 0;

  /** @throws VM_UNSUPPORTED for a memory that no checkpoint can have */
  constructor(readonly pageSpan: number) {
    if (pageSpan > MAX_PAGE_SPAN) throw tooLarge(pageSpan);
  }

  refOf(page: number): RecordRef {
    this.#check(page);
    return refIn(this.#chunk(page >>> CHUNK_BITS), page & CHUNK_MASK);
  }

  depthOf(page: number): number {
    this.#check(page);
    return depthIn(this.#chunk(page >>> CHUNK_BITS), page & CHUNK_MASK);
  }

  get(page: number): { readonly ref: RecordRef; readonly depth: number } {
    return { ref: this.refOf(page), depth: this.depthOf(page) };
  }

  /** One reference a page, 0 for a zero page. Caller owns the result. */
  refsOf(pages: Uint32Array): Float64Array {
    return this.columnsOf(pages).refs;
  }

  /**
   * One reference and one depth a page, best in ascending order: each run of pages of a chunk looks for it
   * once.
   */
  columnsOf(pages: Uint32Array): PlainChunk {
    const columns = { refs: new Float64Array(pages.length), depths: new Uint8Array(pages.length) };
    for (let from = 0; from < pages.length;) {
      const number = pages[from]! >>> CHUNK_BITS;
      this.#check(pages[from]!);
      let to = from + 1;
      while (to < pages.length && pages[to]! >>> CHUNK_BITS === number) this.#check(pages[to++]!);
      let chunk = this.#chunk(number);
      if (to - from >= MANY_PAGES) chunk = expanded(chunk);
      for (; from < to; from++) {
        columns.refs[from] = refIn(chunk, pages[from]! & CHUNK_MASK);
        columns.depths[from] = depthIn(chunk, pages[from]! & CHUNK_MASK);
      }
    }
    return columns;
  }

  /** Provisional. @throws RangeError for a page outside the span */
  set(page: number, ref: RecordRef, depth: number): void {
    this.#check(page);
    const { plain, bits } = this.#toChange(page >>> CHUNK_BITS);
    const at = page & CHUNK_MASK;
    const bit = 1 << (at & 31);
    if ((bits[at >>> 5]! & bit) === 0) {
      bits[at >>> 5]! |= bit;
      this.#changedCount++;
    }
    plain.refs[at] = ref;
    plain.depths[at] = depth;
  }

  /**
   * Enters a stretch of a committed map, whose pages have no changes.
   * @param firstPage a multiple of 1024
   * @param refs and `depths`: copied; they end at such a multiple, or with the memory
   */
  load(firstPage: number, refs: Float64Array, depths: Uint8Array): void {
    for (let from = 0; from < refs.length; from += CHUNK_PAGES)
      this.#committed[(firstPage + from) >>> CHUNK_BITS] = chunkOf(
        refs.subarray(from, from + CHUNK_PAGES),
        depths.subarray(from, from + CHUNK_PAGES),
      );
  }

  isChanged(page: number): boolean {
    this.#check(page);
    const bits = this.#changed.get(page >>> CHUNK_BITS)?.bits;
    const at = page & CHUNK_MASK;
    return bits !== undefined && (bits[at >>> 5]! & (1 << (at & 31))) !== 0;
  }

  get changedCount(): number {
    return this.#changedCount;
  }

  /** Pages changed since the last commit or rollback, ascending. Caller owns the result. */
  changedPages(): Uint32Array {
    const pages = new Uint32Array(this.#changedCount);
    let at = 0;
    for (const number of [...this.#changed.keys()].sort((a, b) => a - b)) {
      const { bits } = this.#changed.get(number)!;
      for (let i = 0; i < CHUNK_PAGES; i++)
        if ((bits[i >>> 5]! & (1 << (i & 31))) !== 0) pages[at++] = number * CHUNK_PAGES + i;
    }
    return pages;
  }

  commit(): void {
    for (const [number, changed] of this.#changed) this.#committed[number] = smallest(changed);
    this.rollback();
  }

  rollback(): void {
    this.#changed.clear();
    this.#plain.clear();
    this.#changedCount = 0;
  }

  /** Pages that have a record. */
  countRecords(): number {
    let count = 0;
    this.visitRuns((_, pageCount) => (count += pageCount));
    return count;
  }

  maxDepth(): number {
    let deepest = 0;
    this.visitRuns((_, __, ___, depth) => (deepest = Math.max(deepest, depth)));
    return deepest;
  }

  /** All pages that have a record, in ascending order. */
  visitRuns(visit: VisitRun): void {
    const count = Math.ceil(this.pageSpan / CHUNK_PAGES);
    for (let number = 0; number < count; number++)
      visitRuns(this.#chunk(number), number * CHUNK_PAGES, visit);
  }

  /** Calls `visit` for each page that another map of the same span holds in another record, ascending. */
  visitDiffering(other: PageMap, visit: (page: number) => void): void {
    const count = Math.ceil(this.pageSpan / CHUNK_PAGES);
    for (let number = 0; number < count; number++) {
      const [a, b] = [this.#chunk(number), other.#chunk(number)];
      if (a === b) continue;
      const [refs, others] = [expanded(a).refs, expanded(b).refs];
      for (let i = 0; i < CHUNK_PAGES; i++) if (refs[i] !== others[i]) visit(number * CHUNK_PAGES + i);
    }
  }

  /**
   * The committed map as it looks in another layout: pages follow their region, by id. What a region has lost
   * is gone, what it has gained is zero. Caller owns the result; this one stays as it is.
   */
  remap(from: MemoryLayout, to: MemoryLayout): PageMap {
    const mapped = new PageMap(to.pageSpan);
    for (const region of to.regions) {
      const old = from.regions.find(({ id }) => id === region.id);
      if (old === undefined) continue;
      const pageCount = Math.min(old.pageCount, region.pageCount);
      mapped.#take(this, old.firstPage, region.firstPage, pageCount);
    }
    mapped.commit();
    return mapped;
  }

  /**
   * Pages [from, from + pageCount) of another map as those from `to` on; whole chunks are shared where they
   * can be.
   */
  #take(other: PageMap, from: number, to: number, pageCount: number): void {
    for (let i = 0; i < pageCount;) {
      const isWhole =
        ((from + i) & CHUNK_MASK) === 0 && ((to + i) & CHUNK_MASK) === 0 && pageCount - i >= CHUNK_PAGES;
      if (isWhole) {
        this.#committed[(to + i) >>> CHUNK_BITS] = other.#committed[(from + i) >>> CHUNK_BITS];
        i += CHUNK_PAGES;
        continue;
      }
      const chunk = other.#committed[(from + i) >>> CHUNK_BITS];
      const at = (from + i) & CHUNK_MASK;
      this.set(to + i, refIn(chunk, at), depthIn(chunk, at));
      i++;
    }
  }

  #chunk(number: number): MapChunk {
    const changed = this.#changed.get(number);
    return changed === undefined ? this.#committed[number] : (changed.plain ?? changed.chunk);
  }

  #toChange(number: number): { readonly plain: PlainChunk; readonly bits: Uint32Array } {
    let changed = this.#changed.get(number);
    if (changed?.plain !== undefined) return { plain: changed.plain, bits: changed.bits };
    if (changed === undefined) {
      changed = new ChangedChunk(this.#committed[number]);
      this.#changed.set(number, changed);
    }
    const plain = expanded(changed.chunk);
    changed.plain = plain;
    this.#plain.add(number);
    if (this.#plain.size > MOST_PLAIN_CHANGED) this.#makeSmall();
    return { plain, bits: changed.bits };
  }

  /** The chunk that has been plain for longest is not likely to change once more. */
  #makeSmall(): void {
    const [number] = this.#plain;
    const changed = this.#changed.get(number!)!;
    changed.chunk = smallest(changed);
    changed.plain = undefined;
    this.#plain.delete(number!);
  }

  #check(page: number): void {
    if (!(page >= 0 && page < this.pageSpan))
      throw new RangeError(`page ${page} of a memory of ${this.pageSpan} pages`);
  }
}

const CHUNK_BITS = Math.log2(CHUNK_PAGES);
const CHUNK_MASK = CHUNK_PAGES - 1;

function smallest({ chunk, plain }: ChangedChunk): MapChunk {
  return plain === undefined ? chunk : chunkOf(plain.refs, plain.depths);
}

function tooLarge(pageSpan: number): CheckpointError {
  return new CheckpointError(
    'VM_UNSUPPORTED',
    `a memory of ${pageSpan} pages is more than a checkpoint can have, which is ${MAX_PAGE_SPAN}`,
    { hint: 'is it the memory of a VM at all?' },
  );
}
