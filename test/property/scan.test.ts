import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import type { Kernels } from '../../src/kernels/kernels.js';
import { bothKernels } from './page-models.js';

const BITMAP_AT = 64;
const MAX_WORDS = 200;
const OTHER_AT = BITMAP_AT + MAX_WORDS * 8;
const OUT_AT = OTHER_AT + MAX_WORDS * 8;
const [wasm, scalar] = bothKernels();
const kernelsByName: [string, Kernels][] = [
  ['wasm', wasm],
  ['scalar', scalar],
];

const word = fc.oneof(
  { weight: 5, arbitrary: fc.constant(0n) },
  { weight: 4, arbitrary: fc.constant(2n ** 64n - 1n) },
  { weight: 2, arbitrary: fc.nat(63).map((bit) => 1n << BigInt(bit)) },
  { weight: 1, arbitrary: fc.constantFrom(1n << 63n, 1n, 0x8000000000000001n, 0x5555555555555555n) },
  { weight: 2, arbitrary: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }) },
);
/** Stretches of equal words, so that whole 64-byte blocks of zeros and ones come up. */
const words = fc
  .array(fc.tuple(word, fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 40 }))), { maxLength: 16 })
  .map((stretches) =>
    stretches.flatMap(([value, count]) => new Array<bigint>(count).fill(value)).slice(0, MAX_WORDS),
  );

function put(kernels: Kernels, at: number, values: readonly bigint[]): void {
  new BigUint64Array(kernels.bytes().buffer, at, values.length).set(values);
}

function bitsOf(values: readonly bigint[]): boolean[] {
  return values.flatMap((value) =>
    Array.from({ length: 64 }, (_, bit) => ((value >> BigInt(bit)) & 1n) === 1n),
  );
}

function naiveRuns(bits: readonly boolean[], startBit = 0, firstPage = 0): [number, number][] {
  const runs: [number, number][] = [];
  bits.forEach((bit, i) => {
    if (!bit || i < startBit) return;
    const last = runs.at(-1);
    if (last !== undefined && last[0] + last[1] === firstPage + i) last[1]++;
    else runs.push([firstPage + i, 1]);
  });
  return runs;
}

function scan(
  kernels: Kernels,
  wordCount: number,
  startBit: number,
  maxRuns: number,
  firstPage = 0,
): [number, number][] {
  kernels.ensure(OUT_AT + maxRuns * 8 + 64);
  const guard = kernels.bytes().subarray(OUT_AT + maxRuns * 8, OUT_AT + maxRuns * 8 + 64);
  guard.fill(0xa5);
  const count = kernels.scanRuns(BITMAP_AT, wordCount, startBit, OUT_AT, maxRuns, firstPage);
  if (!guard.every((byte) => byte === 0xa5)) throw new Error('runs written past the end of the output');
  const out = new Uint32Array(kernels.bytes().buffer, OUT_AT, count * 2);
  return Array.from({ length: count }, (_, i) => [out[i * 2]!, out[i * 2 + 1]!]);
}

describe.each(kernelsByName)('scanRuns (%s)', (_, kernels) => {
  it('finds the runs a bit-by-bit scan finds', () => {
    fc.assert(
      fc.property(words, fc.nat(2 ** 31), (values, firstPage) => {
        put(kernels, BITMAP_AT, values);
        expect(scan(kernels, values.length, 0, 8192, firstPage)).toEqual(
          naiveRuns(bitsOf(values), 0, firstPage),
        );
      }),
      { numRuns: 300 },
    );
  });

  it('starts at any bit, cutting the run it falls into', () => {
    fc.assert(
      fc.property(words, fc.nat(MAX_WORDS * 64 + 100), (values, startBit) => {
        put(kernels, BITMAP_AT, values);
        expect(scan(kernels, values.length, startBit, 8192)).toEqual(naiveRuns(bitsOf(values), startBit));
      }),
      { numRuns: 200 },
    );
  });

  it('continues at the end of the last run when the output was full', () => {
    fc.assert(
      fc.property(
        words,
        fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 250, max: 700 })),
        (values, maxRuns) => {
          put(kernels, BITMAP_AT, values);
          const runs: [number, number][] = [];
          let part: [number, number][];
          do {
            const last = runs.at(-1);
            part = scan(kernels, values.length, last === undefined ? 0 : last[0] + last[1], maxRuns);
            runs.push(...part);
          } while (part.length === maxRuns);
          expect(runs).toEqual(naiveRuns(bitsOf(values)));
        },
      ),
      { numRuns: 200 },
    );
  });
});

describe.each(kernelsByName)('word operations (%s)', (_, kernels) => {
  it('popcount, orInto and andNot do what they say and touch only dst', () => {
    fc.assert(
      fc.property(words, words, (a, b) => {
        const count = Math.min(a.length, b.length);
        const dst = new BigUint64Array(kernels.bytes().buffer, BITMAP_AT, count);
        const src = new BigUint64Array(kernels.bytes().buffer, OTHER_AT, MAX_WORDS);
        put(kernels, BITMAP_AT, a);
        put(kernels, OTHER_AT, b);
        const beyond = new BigUint64Array(
          kernels.bytes().buffer,
          BITMAP_AT + count * 8,
          MAX_WORDS - count,
        ).slice();
        expect(kernels.popcount(BITMAP_AT, a.length)).toBe(bitsOf(a).filter(Boolean).length);
        kernels.orInto(BITMAP_AT, OTHER_AT, count);
        expect([...dst]).toEqual(a.slice(0, count).map((value, i) => value | b[i]!));
        put(kernels, BITMAP_AT, a);
        kernels.andNot(BITMAP_AT, OTHER_AT, count);
        expect([...dst]).toEqual(a.slice(0, count).map((value, i) => value & ~b[i]!));
        expect([...src.subarray(0, b.length)]).toEqual(b);
        expect(new BigUint64Array(kernels.bytes().buffer, BITMAP_AT + count * 8, MAX_WORDS - count)).toEqual(
          beyond,
        );
      }),
      { numRuns: 150 },
    );
  });
});

describe('hash64', () => {
  it('is the same in WebAssembly and TypeScript for any input, seed and alignment', () => {
    const seed = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), seed, fc.nat(15), (input, seed, shift) => {
        for (const kernels of [wasm, scalar]) kernels.bytes().set(input, 64 + shift);
        expect(wasm.hash64(64 + shift, input.length, seed)).toBe(
          scalar.hash64(64 + shift, input.length, seed),
        );
      }),
      { numRuns: 500 },
    );
  });
});
