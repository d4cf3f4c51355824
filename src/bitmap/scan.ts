/**
 * Runs and counts of a bitmap of any length through the shared kernels: the bitmap passes through a small window of
 * linear memory, which stays in the second-level cache.
 */

import { sharedKernels } from '../kernels/shared-kernels.js';
import type { PageRuns } from '../types.js';

/** Bitmap bytes per step. Large enough to make the calls disappear, small enough for a 1 MiB cache beside the runs. */
const WINDOW_BYTES = 256 * 1024;
/** Runs taken out at a time; more just means another call. */
const MAX_RUNS = 16 * 1024;
const RUNS_AT = WINDOW_BYTES;
const SCRATCH_BYTES = RUNS_AT + MAX_RUNS * 8;

/** Number of set bits. `bytes` is a multiple of 8 long. */
export function countBits(bytes: Uint8Array): number {
  let count = 0;
  eachWindow(bytes, (kernels, wordCount) => {
    count += kernels.popcount(0, wordCount);
  });
  return count;
}

/** Runs of set bits, ascending, merged. `bytes` is a multiple of 8 long. Caller owns the result. */
export function scanBits(bytes: Uint8Array): PageRuns {
  const parts: Uint32Array[] = [];
  let length = 0;
  let lastEnd = -1;
  eachWindow(bytes, (kernels, wordCount, firstBit) => {
    let runCount: number;
    let startBit = 0;
    do {
      runCount = kernels.scanRuns(0, wordCount, startBit, RUNS_AT, MAX_RUNS, firstBit);
      if (runCount === 0) return;
      const found = new Uint32Array(kernels.bytes().buffer, RUNS_AT, runCount * 2).slice();
      const end = found[found.length - 2]! + found[found.length - 1]!;
      let part = found;
      if (found[0] === lastEnd) {
        // The run goes on across the border between two windows.
        const last = parts.at(-1)!;
        last[last.length - 1]! += found[1]!;
        part = found.subarray(2);
      }
      lastEnd = end;
      startBit = end - firstBit;
      if (part.length > 0) parts.push(part);
      length += part.length;
    } while (runCount === MAX_RUNS);
  });
  const runs = new Uint32Array(length);
  let at = 0;
  for (const part of parts) {
    runs.set(part, at);
    at += part.length;
  }
  return runs;
}

function eachWindow(
  bytes: Uint8Array,
  visit: (kernels: ReturnType<typeof sharedKernels>, wordCount: number, firstBit: number) => void,
): void {
  const kernels = sharedKernels();
  kernels.ensure(SCRATCH_BYTES);
  const memory = kernels.bytes();
  for (let at = 0; at < bytes.length; at += WINDOW_BYTES) {
    const window = bytes.subarray(at, at + WINDOW_BYTES);
    memory.set(window, 0);
    visit(kernels, window.length / 8, at * 8);
  }
}
