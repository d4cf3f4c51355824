/**
 * Brings the staging file up to date with the pages of a stream, and notes which of them hold something else
 * than before.
 *
 * Invariant: the staging file differs from what it held at the last harvest only in pages whose bit in
 * `dirty` is set, also when a stream breaks off in the middle.
 */

import { readSync, writeSync } from 'node:fs';

import { CheckpointError, describeError } from '../../../../src/errors.js';
import { PAGE_SIZE_BYTES } from '../../../../src/types.js';
import { punchHole } from './staging.js';

/** Pages of one read, comparison and write. */
const RUN_PAGES = 64;

/** Bitmaps that threads share. Page p is bit p % 32 of word p / 32: the same bytes as in a `DirtyBitmap`. */
export interface StagingBits {
  /** Changed since the last harvest. */
  readonly dirty: Uint32Array;
  /** Not known to be zero. */
  readonly filled: Uint32Array;
}

export class StagingWriter {
  readonly #descriptor: number;
  readonly #bits: StagingBits;
  readonly #run = Buffer.alloc(RUN_PAGES * PAGE_SIZE_BYTES);
  readonly #old = Buffer.alloc(RUN_PAGES * PAGE_SIZE_BYTES);
  #runFirst = 0;
  #runCount = 0;
  /**
   * 1 for each page of the run for which the file held something. What it holds for others may come from a
   * broken stream.
   */
  readonly #hadOld = new Uint8Array(RUN_PAGES);
  #holeFirst = 0;
  #holeCount = 0;

  constructor(descriptor: number, bits: StagingBits) {
    this.#descriptor = descriptor;
    this.#bits = bits;
  }

  /** `bytes` is one page, or null for a zero page; not kept. @throws TRACKER_FAILED */
  put(page: number, bytes: Uint8Array | null): void {
    if (bytes === null) this.#putZero(page);
    else this.#putPage(page, bytes);
  }

  /** Everything put so far is in the file, and its bits are set. @throws TRACKER_FAILED */
  flush(): void {
    this.#flushHole();
    this.#flushRun();
  }

  #putPage(page: number, bytes: Uint8Array): void {
    this.#flushHole();
    if (page !== this.#runFirst + this.#runCount || this.#runCount === RUN_PAGES) {
      this.#flushRun();
      this.#runFirst = page;
    }
    const { filled } = this.#bits;
    this.#hadOld[this.#runCount] = hasBit(filled, page) ? 1 : 0;
    setBit(filled, page);
    this.#run.set(bytes, this.#runCount * PAGE_SIZE_BYTES);
    this.#runCount++;
  }

  #putZero(page: number): void {
    const { filled, dirty } = this.#bits;
    if (!hasBit(filled, page)) return;
    this.#flushRun();
    if (page !== this.#holeFirst + this.#holeCount) {
      this.#flushHole();
      this.#holeFirst = page;
    }
    // Dirty before the content changes: the stream may break off in between.
    setBit(dirty, page);
    filled[page >>> 5]! &= ~(1 << (page & 31));
    this.#holeCount++;
  }

  #flushHole(): void {
    if (this.#holeCount > 0) punchHole(this.#descriptor, this.#holeFirst, this.#holeCount);
    this.#holeFirst = 0;
    this.#holeCount = 0;
  }

  #flushRun(): void {
    const count = this.#runCount;
    if (count === 0) return;
    const position = this.#runFirst * PAGE_SIZE_BYTES;
    const bytes = count * PAGE_SIZE_BYTES;
    let from = 0;
    let to = count;
    if (this.#hadOld.includes(1)) {
      readWhole(this.#descriptor, this.#old.subarray(0, bytes), position);
      from = count;
      to = 0;
      for (let i = 0; i < count; i++) {
        const start = i * PAGE_SIZE_BYTES;
        const end = start + PAGE_SIZE_BYTES;
        if (this.#hadOld[i] === 1 && this.#run.compare(this.#old, start, end, start, end) === 0) continue;
        setBit(this.#bits.dirty, this.#runFirst + i);
        from = Math.min(from, i);
        to = i + 1;
      }
    } else {
      for (let i = 0; i < count; i++) setBit(this.#bits.dirty, this.#runFirst + i);
    }
    if (from < to) {
      const part = this.#run.subarray(from * PAGE_SIZE_BYTES, to * PAGE_SIZE_BYTES);
      writeWhole(this.#descriptor, part, position + from * PAGE_SIZE_BYTES);
    }
    this.#runFirst = 0;
    this.#runCount = 0;
    this.#hadOld.fill(0);
  }
}

export function hasBit(bits: Uint32Array, page: number): boolean {
  return ((bits[page >>> 5]! >>> (page & 31)) & 1) === 1;
}

export function setBit(bits: Uint32Array, page: number): void {
  bits[page >>> 5]! |= 1 << (page & 31);
}

function writeWhole(descriptor: number, bytes: Uint8Array, position: number): void {
  try {
    for (let done = 0; done < bytes.length;)
      done += writeSync(descriptor, bytes, done, bytes.length - done, position + done);
  } catch (cause) {
    throw stagingFailed('write', cause);
  }
}

/** Fills `into`. @throws TRACKER_FAILED */
export function readWhole(descriptor: number, into: Uint8Array, position: number): void {
  let done = 0;
  try {
    while (done < into.length) {
      const read = readSync(descriptor, into, done, into.length - done, position + done);
      if (read === 0) throw new Error('it ends too early');
      done += read;
    }
  } catch (cause) {
    throw stagingFailed('read', cause);
  }
}

function stagingFailed(verb: string, cause: unknown): CheckpointError {
  return new CheckpointError(
    'TRACKER_FAILED',
    `cannot ${verb} the staging file of guest memory: ${describeError(cause)}`,
    { cause, hint: 'it needs as much space as the guest has memory; CAIRN_STREAM_DIR names its folder' },
  );
}
