/**
 * Tells for each page of the flat space which record holds it, and how deep that record's chain of deltas is.
 *
 * Changes are provisional until `commit()`; `rollback()` takes them back. So the map of a long-running
 * watcher follows what is committed, and a failed checkpoint leaves no trace in it.
 */

import { CheckpointError } from '../../errors.js';
import type { MemoryLayout } from '../../hypervisor/memory-layout.js';
import { ZERO_REF, type RecordRef } from '../../format/record-ref.js';

/** Reference, depth, and a bit. */
const BYTES_FOR_PAGE = 9 + 1 / 8;

export class PageMap {
  /** One reference a page; 0 = the zero page. Read, do not write. */
  readonly refs: Float64Array;
  /** Records to read beyond the first, one a page. Read, do not write. */
  readonly depths: Uint8Array;
  /** The same memory, four pages at a time. */
  readonly #fourDepths: Uint32Array;
  /** Pages changed since the last commit: a bit a page, LSB first. */
  readonly #changed: Uint8Array;
  /** References that the changed pages had before; pages that had none are left out. */
  #undo = new UndoLog();
  #changedCount = 0;

  /**
   * Takes room for pages that are not zero: what is never written of these arrays is never given out by the system.
   * @throws VM_UNSUPPORTED when this host would not give that much even so
   */
  constructor(readonly pageSpan: number) {
    try {
      this.refs = new Float64Array(pageSpan);
      this.#fourDepths = new Uint32Array(Math.ceil(pageSpan / 4));
      this.#changed = new Uint8Array(Math.ceil(pageSpan / 8));
    } catch (cause) {
      throw tooLarge(pageSpan, cause);
    }
    this.depths = new Uint8Array(this.#fourDepths.buffer, 0, pageSpan);
  }

  refOf(page: number): RecordRef {
    return this.refs[this.#checked(page)]!;
  }

  depthOf(page: number): number {
    return this.depths[this.#checked(page)]!;
  }

  get(page: number): { readonly ref: RecordRef; readonly depth: number } {
    return { ref: this.refOf(page), depth: this.depthOf(page) };
  }

  /** Provisional. @throws RangeError for a page outside the span */
  set(page: number, ref: RecordRef, depth: number): void {
    const before = this.refs[this.#checked(page)]!;
    const bit = 1 << (page & 7);
    if ((this.#changed[page >>> 3]! & bit) === 0) {
      this.#changed[page >>> 3]! |= bit;
      this.#changedCount++;
      if (before !== ZERO_REF || this.depths[page] !== 0) this.#undo.push(page, before, this.depths[page]!);
    }
    this.refs[page] = ref;
    this.depths[page] = depth;
  }

  isChanged(page: number): boolean {
    return (this.#changed[this.#checked(page) >>> 3]! & (1 << (page & 7))) !== 0;
  }

  /** Pages changed since the last commit or rollback, ascending. Caller owns the result. */
  changedPages(): Uint32Array {
    const pages = new Uint32Array(this.#changedCount);
    let at = 0;
    for (let i = 0; at < pages.length; i++) {
      const bits = this.#changed[i]!;
      if (bits === 0) continue;
      for (let bit = 0; bit < 8; bit++) if ((bits & (1 << bit)) !== 0) pages[at++] = i * 8 + bit;
    }
    return pages;
  }

  commit(): void {
    if (this.#changedCount === 0) return;
    this.#changed.fill(0);
    this.#changedCount = 0;
    this.#undo = new UndoLog();
  }

  rollback(): void {
    if (this.#changedCount === 0) return;
    for (const page of this.changedPages()) {
      this.refs[page] = ZERO_REF;
      this.depths[page] = 0;
    }
    this.#undo.restore(this.refs, this.depths);
    this.commit();
  }

  /** Pages that have a record. */
  countRecords(): number {
    let count = 0;
    for (const ref of this.refs) if (ref !== ZERO_REF) count++;
    return count;
  }

  /**
   * Called in each checkpoint, for all pages: page by page it took 1.5 ms for each GiB. Counts kept by `set`
   * would make that too large to be inlined, and each reference that is handed to it an object.
   */
  maxDepth(): number {
    let deepest = 0;
    // Not for-of, which takes five times as long.
    let i = this.#fourDepths.length;
    while (i > 0) {
      const four = this.#fourDepths[--i]!;
      if (four === 0) continue;
      for (let shift = 0; shift < 32; shift += 8) deepest = Math.max(deepest, (four >>> shift) & 255);
    }
    return deepest;
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
      const end = old.firstPage + Math.min(old.pageCount, region.pageCount);
      mapped.refs.set(this.refs.subarray(old.firstPage, end), region.firstPage);
      mapped.depths.set(this.depths.subarray(old.firstPage, end), region.firstPage);
    }
    return mapped;
  }

  #checked(page: number): number {
    if (page >= 0 && page < this.pageSpan) return page;
    throw new RangeError(`page ${page} of a memory of ${this.pageSpan} pages`);
  }
}

function tooLarge(pageSpan: number, cause: unknown): CheckpointError {
  const gib = ((pageSpan * BYTES_FOR_PAGE) / 2 ** 30).toFixed(1);
  return new CheckpointError(
    'VM_UNSUPPORTED',
    `the map of a memory of ${pageSpan} pages takes up to ${gib} GiB, which this host does not have`,
    { cause, hint: 'read such a checkpoint on a host with more memory' },
  );
}

/** Growing arrays of (page, ref, depth): 13 bytes an entry, where objects would take 100. */
class UndoLog {
  #count = 0;
  #pages = new Uint32Array(64);
  #refs = new Float64Array(64);
  #depths = new Uint8Array(64);

  push(page: number, ref: RecordRef, depth: number): void {
    if (this.#count === this.#pages.length) this.#grow();
    this.#pages[this.#count] = page;
    this.#refs[this.#count] = ref;
    this.#depths[this.#count++] = depth;
  }

  restore(refs: Float64Array, depths: Uint8Array): void {
    for (let i = 0; i < this.#count; i++) {
      refs[this.#pages[i]!] = this.#refs[i]!;
      depths[this.#pages[i]!] = this.#depths[i]!;
    }
  }

  #grow(): void {
    const length = this.#pages.length * 2;
    const pages = new Uint32Array(length);
    const refs = new Float64Array(length);
    const depths = new Uint8Array(length);
    pages.set(this.#pages);
    refs.set(this.#refs);
    depths.set(this.#depths);
    this.#pages = pages;
    this.#refs = refs;
    this.#depths = depths;
  }
}
