import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { ANCHOR_CAPACITY_BYTES, type Kernels } from '../../src/kernels/kernels.js';
import { bothKernels, PAGE, randomPage } from './page-models.js';

const [wasm, scalar] = bothKernels();
const AT = 3 * PAGE + 5;
const OUT = 8 * PAGE;

function anchorsIn(kernels: Kernels, page: Uint8Array): readonly number[] {
  kernels.ensure(OUT + ANCHOR_CAPACITY_BYTES);
  kernels.bytes().set(page, AT);
  const count = kernels.findAnchors(AT, OUT);
  return [...new Uint32Array(kernels.bytes().buffer, OUT, count)];
}

/** Random, with repeated words and zeroes in between. */
const pages = fc
  .tuple(fc.nat(), fc.array(fc.tuple(fc.nat(PAGE - 1), fc.nat(600), fc.nat(255)), { maxLength: 6 }))
  .map(([seed, fills]) => {
    const page = randomPage(seed);
    for (const [from, length, value] of fills) page.fill(value, from, from + length);
    return page;
  });

describe('the anchors of a page', () => {
  it('are the same by WebAssembly and by TypeScript', () => {
    fc.assert(
      fc.property(pages, (page) => {
        expect(anchorsIn(wasm, page)).toEqual(anchorsIn(scalar, page));
      }),
      { numRuns: 300 },
    );
  });

  it('move with the content, by any number of bytes', () => {
    fc.assert(
      fc.property(fc.nat(), fc.integer({ min: 1, max: PAGE / 2 }), (seed, by) => {
        const page = randomPage(seed);
        const moved = randomPage(seed + 1);
        moved.set(page.subarray(by));
        const before = anchorsIn(wasm, page);
        const after = anchorsIn(wasm, moved);
        const stayed = before.slice(before.indexOf(after[0]!));
        expect(stayed.length).toBeGreaterThan(1);
        expect(after.slice(0, stayed.length)).toEqual(stayed);
      }),
      { numRuns: 100 },
    );
  });

  it('are none where nothing but a word repeats', () => {
    for (const value of [0, 0x5a]) expect(anchorsIn(wasm, new Uint8Array(PAGE).fill(value))).toEqual([]);
  });

  it('lie in the page and the room for them in the memory, or nothing is touched', () => {
    const end = wasm.bytes().length;
    expect(() => wasm.findAnchors(end - PAGE + 1, OUT)).toThrow(RangeError);
    expect(() => wasm.findAnchors(AT, OUT + 1)).toThrow(RangeError);
    expect(() => wasm.findAnchors(AT, end - ANCHOR_CAPACITY_BYTES + 4)).toThrow(RangeError);
  });
});
