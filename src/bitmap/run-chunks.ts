/** Cutting page runs into batches of a bounded number of pages. */

import type { PageRuns } from '../types.js';

/** Batches of at most `maxPages` pages each, in order; together they are `runs`. */
export function* chunkRuns(runs: PageRuns, maxPages: number): Generator<PageRuns> {
  let batch: number[] = [];
  let room = maxPages;
  for (let i = 0; i < runs.length; i += 2) {
    let first = runs[i]!;
    let left = runs[i + 1]!;
    while (left > 0) {
      const taken = Math.min(left, room);
      batch.push(first, taken);
      first += taken;
      left -= taken;
      room -= taken;
      if (room === 0) {
        yield Uint32Array.from(batch);
        batch = [];
        room = maxPages;
      }
    }
  }
  if (batch.length > 0) yield Uint32Array.from(batch);
}
