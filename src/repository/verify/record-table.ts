/**
 * What `verify` remembers of each record it has read: 13 bytes, to check digests and to compare the index
 * with.
 */

import type { OpenPack } from '../read/pack-reader.js';
import { frameOfRef, recordOfRef, type RecordRef } from '../../format/record-ref.js';

/** Stands in place of a depth when the record, or one that it builds on, cannot be read. */
export const BROKEN = 255;

export class RecordTable {
  /** Number of the first record of each frame, and the total. */
  readonly #starts: Uint32Array;
  readonly pages: Uint32Array;
  readonly depths: Uint8Array;
  /** Hashes of the decoded pages. */
  readonly hashes: BigUint64Array;
  /** Digest of each frame, as its header has it. */
  readonly digests: BigUint64Array;
  /** Frames found bad: their records count as BROKEN. */
  readonly badFrames = new Set<number>();

  constructor(readonly pack: OpenPack) {
    this.#starts = new Uint32Array(pack.frames.length + 1);
    pack.frames.forEach((frame, i) => (this.#starts[i + 1] = this.#starts[i]! + frame.recordCount));
    const count = this.#starts[pack.frames.length]!;
    this.pages = new Uint32Array(count);
    this.depths = new Uint8Array(count).fill(BROKEN);
    this.hashes = new BigUint64Array(count);
    this.digests = new BigUint64Array(pack.frames.length);
  }

  startOf(frame: number): number {
    return this.#starts[frame]!;
  }

  /** Position in `pages` and `depths`, undefined when the pack has no such record. */
  find(ref: RecordRef): number | undefined {
    const frame = frameOfRef(ref);
    const start = this.#starts[frame];
    const end = this.#starts[frame + 1];
    if (start === undefined || end === undefined) return undefined;
    const at = start + recordOfRef(ref);
    return at < end ? at : undefined;
  }
}
