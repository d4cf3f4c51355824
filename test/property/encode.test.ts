import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { CODEC_RAW, CODEC_RUNS, CODEC_SAME, CODEC_ZERO } from '../../src/kernels/codec-ids.js';
import type { PagePair } from './page-models.js';
import {
  applyRuns,
  bothKernels,
  encodeBatch,
  PAGE,
  pagePair,
  parseControl,
  randomPage,
  same,
} from './page-models.js';

const [wasm, scalar] = bothKernels();

/** A page against a random base with every `step`-th byte changed, `length` bytes at a time. */
function patterned(step: number, length: number): PagePair {
  const base = randomPage(step * 100 + length);
  const page = base.slice();
  for (let at = 0; at < PAGE; at += step)
    for (let i = at; i < Math.min(at + length, PAGE); i++) page[i]! ^= 0xff;
  return { page, base, baseKind: 'page' };
}

function expectFormat(pairs: readonly PagePair[], encoded: ReturnType<typeof encodeBatch>): void {
  let controlAt = 0;
  let dataAt = 0;
  pairs.forEach(({ page, base }, i) => {
    const control = encoded.control.subarray(controlAt, (controlAt += encoded.controlLengths[i]!));
    const data = encoded.data.subarray(dataAt, (dataAt += encoded.dataLengths[i]!));
    const isZero = page.every((byte) => byte === 0);
    const isSame = base !== undefined && same(page, base);
    switch (encoded.codecs[i]) {
      case CODEC_SAME:
        expect(isSame).toBe(true);
        expect(control.length + data.length).toBe(0);
        break;
      case CODEC_ZERO:
        expect(isZero && !isSame).toBe(true);
        expect(control.length + data.length).toBe(0);
        break;
      case CODEC_RAW:
        expect(isZero || isSame).toBe(false);
        expect(control.length).toBe(0);
        expect(same(data, page)).toBe(true);
        break;
      default: {
        expect(encoded.codecs[i]).toBe(CODEC_RUNS);
        expect(isZero || isSame).toBe(false);
        expect(control.length + data.length).toBeLessThan(PAGE);
        expect(same(applyRuns(base!, control, data)!, page)).toBe(true);
        const gapsBetween = parseControl(control)!.slice(1);
        expect(gapsBetween.every(({ gap }) => gap > 2)).toBe(true);
      }
    }
  });
  expect(controlAt).toBe(encoded.control.length);
  expect(dataAt).toBe(encoded.data.length);
}

describe('encodePages', () => {
  it('writes records that say what the page is, and nothing outside its buffers', () => {
    fc.assert(
      fc.property(fc.array(pagePair, { minLength: 1, maxLength: 6 }), (pairs) => {
        expectFormat(pairs, encodeBatch(wasm, pairs, false));
      }),
      { numRuns: 300 },
    );
  });

  it('gives identical bytes in WebAssembly and TypeScript, bases included', () => {
    fc.assert(
      fc.property(fc.array(pagePair, { maxLength: 6 }), fc.boolean(), (pairs, updateBases) => {
        expect(encodeBatch(wasm, pairs, updateBases)).toEqual(encodeBatch(scalar, pairs, updateBases));
      }),
      { numRuns: 300 },
    );
  });

  it('leaves bases holding the new page when told to, and untouched when not', () => {
    fc.assert(
      fc.property(fc.array(pagePair, { minLength: 1, maxLength: 6 }), fc.boolean(), (pairs, updateBases) => {
        const withPage = pairs.filter(({ baseKind }) => baseKind === 'page');
        const { basesAfter } = encodeBatch(wasm, pairs, updateBases);
        expect(basesAfter.length).toBe(withPage.length);
        withPage.forEach(({ page, base }, i) => {
          expect(same(basesAfter[i]!, updateBases ? page : base!)).toBe(true);
        });
      }),
      { numRuns: 200 },
    );
  });

  it('agrees on every regular pattern of changed bytes around the merge and raw limits', () => {
    const pairs: PagePair[] = [];
    for (let step = 1; step <= 12; step++)
      for (let length = 1; length <= step; length++) pairs.push(patterned(step, length));
    for (let length = 4080; length <= 4096; length++) pairs.push(patterned(PAGE, length));
    const encoded = encodeBatch(wasm, pairs, false);
    expectFormat(pairs, encoded);
    expect(encoded).toEqual(encodeBatch(scalar, pairs, false));
    // One changed byte in four is the densest control stream there is: 1024 runs of two bytes each.
    const densest = encodeBatch(wasm, [patterned(4, 1)], false);
    expect([densest.control.length, densest.data.length]).toEqual([2048, 1024]);
  });

  it('stores a page raw exactly when runs would not be smaller', () => {
    const codecOf = (length: number) => encodeBatch(wasm, [patterned(PAGE, length)], false).codecs[0];
    // One run from byte 0: one byte for the gap, two for the length.
    expect(codecOf(4092)).toBe(CODEC_RUNS);
    expect(codecOf(4093)).toBe(CODEC_RAW);
  });

  it('treats a base of zeros like the zero page', () => {
    const zero = new Uint8Array(PAGE);
    const some = zero.slice();
    some[17] = 1;
    const against = (page: Uint8Array, baseKind: 'page' | 'zero page') =>
      encodeBatch(wasm, [{ page, base: zero, baseKind }], false);
    expect(against(zero, 'page').codecs).toEqual(Uint8Array.of(CODEC_SAME));
    expect(against(zero, 'zero page').codecs).toEqual(Uint8Array.of(CODEC_SAME));
    expect(against(some, 'page').control).toEqual(Uint8Array.of(17, 1));
    expect(against(some, 'zero page').control).toEqual(Uint8Array.of(17, 1));
  });
});

describe('isZeroPages', () => {
  it('finds the zero pages, and a single set byte wherever it is', () => {
    const set = fc.array(fc.tuple(fc.nat(149), fc.nat(PAGE - 1)), { maxLength: 150 });
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 150 }), set, (pageCount, bytes) => {
        const results = [wasm, scalar].map((kernels) => {
          const pages = 64;
          const bitmap = pages + 150 * PAGE;
          kernels.ensure(bitmap + 64);
          const memory = kernels.bytes();
          memory.fill(0, pages, bitmap);
          memory.fill(0xa5, bitmap, bitmap + 64);
          for (const [page, at] of bytes) memory[pages + page * PAGE + at] = 1;
          kernels.isZeroPages(pages, pageCount, bitmap);
          return memory.slice(bitmap, bitmap + 64);
        });
        const dirty = new Set(bytes.map(([page]) => page));
        const wordBytes = Math.ceil(pageCount / 64) * 8;
        const expected = new Uint8Array(64).fill(0xa5).fill(0, 0, wordBytes);
        for (let page = 0; page < pageCount; page++)
          if (!dirty.has(page)) expected[page >>> 3]! |= 1 << (page & 7);
        expect(results[0]).toEqual(expected);
        expect(results[1]).toEqual(expected);
      }),
      { numRuns: 60 },
    );
  });
});
