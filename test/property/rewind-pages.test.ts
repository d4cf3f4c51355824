import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';

import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { makeRef } from '../../src/format/record-ref.js';
import { PageMap } from '../../src/repository/read/page-map.js';
import { PagesBack } from '../../src/rewind/pages-back.js';
import { expandRuns, PAGE_SIZE_BYTES } from '../../src/types.js';
import { columnsOf } from '../support/map-columns.js';

const PAGES = 320;
const layout = layOut([
  { id: 'ram', sizeBytes: 256 * PAGE_SIZE_BYTES },
  { id: 'rom', sizeBytes: 64 * PAGE_SIZE_BYTES },
]);
const setOf = (pages: readonly number[]): DirtyBitmap => {
  const bitmap = new DirtyBitmap(layout.pageSpan);
  for (const page of pages) bitmap.set(page);
  return bitmap;
};
const somePages = fc.array(fc.nat(PAGES - 1), { maxLength: 80 });

describe('the pages of a rewind', () => {
  it('are those of the checkpoint in the end, whatever was known when, and no other page is touched', async () => {
    await fc.assert(
      fc.asyncProperty(
        somePages,
        somePages,
        somePages,
        somePages,
        somePages,
        fc.nat(60),
        async (stored, early, late, rewritten, absent, room) => {
          // A page of the checkpoint is filled with the number of its record, or is zero.
          const map = new PageMap(layout.pageSpan);
          for (const page of stored) map.set(page, makeRef(1, 1, (page % 250) + 1), 0);
          map.commit();
          const valueOf = (ref: number): number => ref % 251;
          const pages = new PagesBack({
            ...{ map, layout, heldBytes: room * PAGE_SIZE_BYTES },
            read: (refs, into) => {
              refs.forEach((ref, i) =>
                into.fill(valueOf(ref), i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES),
              );
              return Promise.resolve();
            },
          });
          // The guest: 255 where it has written, otherwise what the checkpoint has.
          const guest = Array.from(columnsOf(map).refs, (ref) => (ref === 0 ? 0 : valueOf(ref)));
          const known = setOf(early);
          const touched = new Set<number>();
          const write = (runs: Uint32Array, bytes: Uint8Array | null): void =>
            expandRuns(runs).forEach((page, i) => {
              touched.add(page);
              guest[page] = bytes === null ? 0 : bytes[i * PAGE_SIZE_BYTES]!;
              if (bytes !== null) expect(bytes[(i + 1) * PAGE_SIZE_BYTES - 1]).toBe(guest[page]);
            });
          await pages.holdSmallRegions();
          await pages.hold(known);
          known.or(setOf(late));
          // What has no memory behind it reads as zero.
          const gone = setOf(absent);
          const want = expandRuns(known.toRuns());
          for (const page of want) guest[page] = gone.has(page) ? 0 : 255;
          pages.leaveOut(gone);
          await pages.holdRest(known);
          await pages.write(known, write, () => undefined);
          for (const page of touched) expect(known.has(page)).toBe(true);
          const again = setOf(rewritten);
          for (const page of expandRuns(again.toRuns())) guest[page] = 254;
          await pages.writeAgain(again, write);
          expect(guest).toEqual(Array.from(columnsOf(map).refs, (ref) => (ref === 0 ? 0 : valueOf(ref))));
        },
      ),
      { numRuns: 300 },
    );
  });
});
