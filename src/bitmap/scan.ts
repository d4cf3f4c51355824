/**
 * Runs and counts of a bitmap of any length through the shared kernels: the bitmap passes through a small
 * window of linear memory, which stays in the second-level cache.
 */

import { edgeCapacityBytes, SCAN_WORDS } from '../kernels/kernels.js';
import { sharedKernels } from '../kernels/shared-kernels.js';
import type { PageRuns } from '../types.js';

/**
 * Bitmap bytes per step: 2 GiB of guest memory. Large enough to make the calls disappear, and the room that
 * its edges need at the worst is still moderate.
 */
const WINDOW_BYTES = 64 * 1024;
/**
 * The word before the window is the last of the window before, so that a run goes on from one into the other.
 */
const WINDOW_AT = 64;
const STEP_BYTES = SCAN_WORDS * 8;
const EDGES_AT = WINDOW_AT + WINDOW_BYTES;
/** Edges are taken out when the next window might not find room for its own. */
const MAX_WINDOW_EDGES = WINDOW_BYTES * 8;
const SCRATCH_BYTES = EDGES_AT + MAX_WINDOW_EDGES * 4 + edgeCapacityBytes(WINDOW_BYTES / 8);

/** Number of set bits. `bytes` is a multiple of 8 long. */
export function countBits(bytes: Uint8Array): number {
  const kernels = sharedKernels();
  kernels.ensure(SCRATCH_BYTES);
  let count = 0;
  for (let at = 0; at < bytes.length; at += WINDOW_BYTES) {
    const sizeBytes = putWindow(kernels.bytes(), bytes, at);
    count += kernels.popcount(WINDOW_AT, sizeBytes / 8);
  }
  return count;
}

/** Runs of set bits, ascending, merged. `bytes` is a multiple of 8 long. Caller owns the result. */
export function scanBits(bytes: Uint8Array): PageRuns {
  const kernels = sharedKernels();
  kernels.ensure(SCRATCH_BYTES);
  const memory = kernels.bytes();
  const u32 = wordsOf(memory);
  const carryAt = WINDOW_AT / 4 - 2;
  u32[carryAt] = u32[carryAt + 1] = 0;
  /** Edges at EDGES_AT. Their number is odd while a run is open. */
  let count = 0;
  let taken: TakenRuns | undefined;
  for (let at = 0; at < bytes.length; at += WINDOW_BYTES) {
    if (count > MAX_WINDOW_EDGES) {
      kernels.edgesToRuns(EDGES_AT, count >>> 1);
      taken ??= new TakenRuns();
      taken.add(u32.subarray(EDGES_AT / 4, EDGES_AT / 4 + (count & ~1)), at / bytes.length);
      u32[EDGES_AT / 4] = u32[EDGES_AT / 4 + count - 1]!;
      count &= 1;
    }
    const sizeBytes = putWindow(memory, bytes, at);
    count += kernels.scanEdges(WINDOW_AT, sizeBytes / 8, at * 8, EDGES_AT + count * 4);
    u32[carryAt] = u32[EDGES_AT / 4 - 2]!;
    u32[carryAt + 1] = u32[EDGES_AT / 4 - 1]!;
  }
  // A run that reaches the end of the bitmap.
  if (count % 2 !== 0) u32[EDGES_AT / 4 + count++] = bytes.length * 8;
  if (count > 0) kernels.edgesToRuns(EDGES_AT, count / 2);
  if (taken === undefined) return u32.slice(EDGES_AT / 4, EDGES_AT / 4 + count);
  taken.add(u32.subarray(EDGES_AT / 4, EDGES_AT / 4 + count), 1);
  return taken.runs();
}

let words: Uint32Array = new Uint32Array(0);
/** The view is kept: making one takes as long as scanning the bitmap of 256 MiB. */
function wordsOf(memory: Uint8Array): Uint32Array {
  if (words.buffer !== memory.buffer) words = new Uint32Array(memory.buffer);
  return words;
}

/**
 * Puts the window that begins at byte `at` into linear memory, filled up with zeros to whole steps. Returns
 * its length.
 */
function putWindow(memory: Uint8Array, bytes: Uint8Array, at: number): number {
  const window = bytes.length <= WINDOW_BYTES ? bytes : bytes.subarray(at, at + WINDOW_BYTES);
  memory.set(window, WINDOW_AT);
  const sizeBytes = Math.ceil(window.length / STEP_BYTES) * STEP_BYTES;
  if (sizeBytes > window.length) memory.fill(0, WINDOW_AT + window.length, WINDOW_AT + sizeBytes);
  return sizeBytes;
}

/** More runs than one piece of linear memory holds: of a huge guest, or of scattered pages. */
class TakenRuns {
  #runs = new Uint32Array(0);
  #length = 0;

  /** @param share of the bitmap that all runs so far come from: what tells how many more to expect */
  add(runs: PageRuns, share: number): void {
    const length = this.#length + runs.length;
    if (length > this.#runs.length) {
      // Memory that is never written costs address space only.
      const larger = new Uint32Array(Math.max(length, Math.ceil((length / share) * 1.1)));
      larger.set(this.#runs.subarray(0, this.#length));
      this.#runs = larger;
    }
    this.#runs.set(runs, this.#length);
    this.#length = length;
  }

  runs(): PageRuns {
    return this.#runs.subarray(0, this.#length);
  }
}
