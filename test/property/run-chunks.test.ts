import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';

import { chunkRuns } from '../../src/bitmap/run-chunks.js';
import { countRunPages, expandRuns } from '../../src/types.js';

const runs = fc
  .array(fc.tuple(fc.integer({ min: 1, max: 50 }), fc.integer({ min: 1, max: 300 })), { maxLength: 20 })
  .map((pairs) => {
    let next = 0;
    return Uint32Array.from(
      pairs.flatMap(([gap, length]) => {
        const first = next + gap;
        next = first + length;
        return [first, length];
      }),
    );
  });

describe('cutting runs into batches', () => {
  it('keeps every page, in order, and fills all batches but the last', () => {
    fc.assert(
      fc.property(runs, fc.integer({ min: 1, max: 128 }), (all, maxPages) => {
        const batches = [...chunkRuns(all, maxPages)];
        expect(batches.flatMap((batch) => [...expandRuns(batch)])).toEqual([...expandRuns(all)]);
        expect(batches.slice(0, -1).every((batch) => countRunPages(batch) === maxPages)).toBe(true);
        expect(batches.every((batch) => countRunPages(batch) > 0 && countRunPages(batch) <= maxPages)).toBe(
          true,
        );
      }),
    );
  });
});
