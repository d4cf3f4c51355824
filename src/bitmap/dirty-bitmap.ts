/**
 * A set of pages, one bit a page: page p is bit p % 64 of word p / 64, words are little-endian. The form in
 * which hypervisors report dirty pages. Bits past the last page are always clear.
 *
 * The 32-bit and 64-bit views below rely on a little-endian machine, which every machine Cairn supports is.
 */

import { CheckpointError } from '../errors.js';
import type { PageRuns } from '../types.js';
import { countBits, scanBits } from './scan.js';

export class DirtyBitmap {
  readonly pageCount: number;
  /**
   * ceil(pageCount / 64) words. Owned by the bitmap; who writes to it keeps the bits past the last page
   * clear.
   */
  readonly words: BigUint64Array;
  /** The same memory, byte by byte. */
  readonly bytes: Uint8Array;
  private readonly halves: Uint32Array;

  /** An empty set. @throws RangeError unless `pageCount` is an integer from 0 to 2^32 - 64 */
  constructor(pageCount: number) {
    if (!(Number.isInteger(pageCount) && pageCount >= 0 && pageCount <= 2 ** 32 - 64)) {
      throw new RangeError(`dirty bitmap of ${pageCount} pages`);
    }
    this.pageCount = pageCount;
    this.words = new BigUint64Array(Math.ceil(pageCount / 64));
    this.bytes = new Uint8Array(this.words.buffer);
    this.halves = new Uint32Array(this.words.buffer);
  }

  /**
   * A copy of a bitmap as a hypervisor delivers it.
   * @param bytes ceil(pageCount / 64) * 8 bytes
   * @throws DIRTY_BITMAP_SIZE when the length is another, or a bit past the last page is set
   */
  static fromBytes(pageCount: number, bytes: Uint8Array): DirtyBitmap {
    const bitmap = new DirtyBitmap(pageCount);
    if (bytes.length !== bitmap.bytes.length) {
      throw new CheckpointError(
        'DIRTY_BITMAP_SIZE',
        `dirty bitmap of ${bytes.length} bytes for ${pageCount} pages, expected ${bitmap.bytes.length}`,
        { detail: { pageCount, sizeBytes: bytes.length } },
      );
    }
    bitmap.bytes.set(bytes);
    const lastWord = bitmap.words.at(-1) ?? 0n;
    if (pageCount % 64 !== 0 && lastWord >> BigInt(pageCount % 64) !== 0n) {
      throw new CheckpointError('DIRTY_BITMAP_SIZE', `dirty bitmap with bits past its ${pageCount} pages`, {
        detail: { pageCount },
      });
    }
    return bitmap;
  }

  /** Does what `fromBytes` does, from little-endian words. */
  static fromWords(pageCount: number, words: BigUint64Array): DirtyBitmap {
    return DirtyBitmap.fromBytes(pageCount, new Uint8Array(words.buffer, words.byteOffset, words.byteLength));
  }

  /** @throws RangeError when a run leads past the last page */
  static fromRuns(pageCount: number, runs: PageRuns): DirtyBitmap {
    const bitmap = new DirtyBitmap(pageCount);
    bitmap.setRuns(runs);
    return bitmap;
  }

  /** @throws RangeError when there is no such page */
  set(page: number): void {
    this.checkPage(page);
    this.halves[page >>> 5]! |= 1 << (page & 31);
  }

  /** Adds the pages [first, first + count). @throws RangeError when they are not all there */
  setRange(first: number, count: number): void {
    this.putRange(first, count, 0xffffffff);
  }

  /** Takes the pages [first, first + count) away. @throws RangeError when they are not all there */
  clearRange(first: number, count: number): void {
    this.putRange(first, count, 0);
  }

  /**
   * Adds the pages of `runs`. For a few runs in a large memory it takes far less time than `or`.
   * @throws RangeError as `setRange`
   */
  setRuns(runs: PageRuns): void {
    for (let i = 0; i < runs.length; i += 2) this.setRange(runs[i]!, runs[i + 1]!);
  }

  /** Takes the pages of `runs` away. @throws RangeError as `clearRange` */
  clearRuns(runs: PageRuns): void {
    for (let i = 0; i < runs.length; i += 2) this.clearRange(runs[i]!, runs[i + 1]!);
  }

  /** @throws RangeError when there is no such page */
  has(page: number): boolean {
    this.checkPage(page);
    return ((this.halves[page >>> 5]! >>> (page & 31)) & 1) === 1;
  }

  /** Adds the pages of `other`. @throws DIRTY_BITMAP_SIZE when it is for another number of pages */
  or(other: DirtyBitmap): void {
    this.checkSameSize(other);
    const { halves } = this;
    const from = other.halves;
    for (let i = 0; i < halves.length; i++) halves[i]! |= from[i]!;
  }

  /** Takes the pages of `other` away. @throws DIRTY_BITMAP_SIZE when it is for another number of pages */
  andNot(other: DirtyBitmap): void {
    this.checkSameSize(other);
    const { halves } = this;
    const from = other.halves;
    for (let i = 0; i < halves.length; i++) halves[i]! &= ~from[i]!;
  }

  /** Number of pages in the set. */
  count(): number {
    return countBits(this.bytes);
  }

  /** Empties the set. */
  clear(): void {
    this.halves.fill(0);
  }

  /** Caller owns the copy. */
  clone(): DirtyBitmap {
    const copy = new DirtyBitmap(this.pageCount);
    copy.halves.set(this.halves);
    return copy;
  }

  isEmpty(): boolean {
    return this.halves.every((half) => half === 0);
  }

  /** The pages as runs, ascending, merged. Caller owns them. */
  toRuns(): PageRuns {
    return scanBits(this.bytes);
  }

  private checkPage(page: number): void {
    if (!(Number.isInteger(page) && page >= 0 && page < this.pageCount)) {
      throw new RangeError(`page ${page} of ${this.pageCount}`);
    }
  }

  /** @param bits of 32 pages: all set or none */
  private putRange(first: number, count: number, bits: 0 | 0xffffffff): void {
    if (!(Number.isInteger(first) && first >= 0 && Number.isInteger(count) && count >= 0)) {
      throw new RangeError(`pages from ${first}, ${count} of them`);
    }
    const end = first + count;
    if (end > this.pageCount) throw new RangeError(`pages ${first} to ${end} of ${this.pageCount}`);
    if (count === 0) return;
    const firstHalf = first >>> 5;
    const lastHalf = (end - 1) >>> 5;
    const head = -1 << (first & 31);
    const tail = -1 >>> (31 - ((end - 1) & 31));
    if (firstHalf === lastHalf) {
      this.putMasked(firstHalf, head & tail, bits);
      return;
    }
    this.putMasked(firstHalf, head, bits);
    this.halves.fill(bits, firstHalf + 1, lastHalf);
    this.putMasked(lastHalf, tail, bits);
  }

  private putMasked(half: number, mask: number, bits: number): void {
    this.halves[half] = (this.halves[half]! & ~mask) | (bits & mask);
  }

  private checkSameSize(other: DirtyBitmap): void {
    if (other.pageCount !== this.pageCount) {
      throw new CheckpointError(
        'DIRTY_BITMAP_SIZE',
        `dirty bitmap of ${other.pageCount} pages combined with one of ${this.pageCount}`,
        { detail: { pageCount: this.pageCount, otherPageCount: other.pageCount } },
      );
    }
  }
}
