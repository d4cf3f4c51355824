import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { edgeCapacityBytes, SCAN_WORDS, type Kernels } from '../../src/kernels/kernels.js';
import { bothKernels } from './page-models.js';

const BITMAP_AT = 64;
const MAX_WORDS = 208;
const OTHER_AT = BITMAP_AT + MAX_WORDS * 8;
const EDGES_AT = OTHER_AT + MAX_WORDS * 8;
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
/** Stretches of equal words, so that whole steps of zeros and ones come up. */
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

/** Where bits differ from the bit before. */
function naiveEdges(bits: readonly boolean[], before: boolean, firstBit: number): number[] {
  return bits.flatMap((bit, i) => (bit === (i === 0 ? before : bits[i - 1]) ? [] : [firstBit + i]));
}

function scan(kernels: Kernels, values: readonly bigint[], before: bigint, firstBit: number): number[] {
  const padded = [...values];
  while (padded.length % SCAN_WORDS !== 0) padded.push(0n);
  put(kernels, BITMAP_AT - 8, [before, ...padded]);
  const end = EDGES_AT + edgeCapacityBytes(padded.length);
  kernels.ensure(end + 64);
  const guard = kernels.bytes().subarray(end, end + 64);
  guard.fill(0xa5);
  const count = kernels.scanEdges(BITMAP_AT, padded.length, firstBit, EDGES_AT);
  if (!guard.every((byte) => byte === 0xa5)) throw new Error('edges written past the end of the output');
  return [...new Uint32Array(kernels.bytes().buffer, EDGES_AT, count)];
}

describe.each(kernelsByName)('scanEdges (%s)', (_, kernels) => {
  it('finds the edges a bit-by-bit scan finds, whatever comes before', () => {
    fc.assert(
      fc.property(words, word, fc.nat(2 ** 31), (values, before, firstBit) => {
        const bits = bitsOf(values);
        while (bits.length % (SCAN_WORDS * 64) !== 0) bits.push(false);
        expect(scan(kernels, values, before, firstBit)).toEqual(
          naiveEdges(bits, before >> 63n === 1n, firstBit),
        );
      }),
      { numRuns: 300 },
    );
  });

  it('has room for as many edges as there are bits', () => {
    const values = new Array<bigint>(SCAN_WORDS * 2).fill(0x5555555555555555n);
    expect(scan(kernels, values, 0n, 0)).toHaveLength(SCAN_WORDS * 2 * 64);
  });
});

describe.each(kernelsByName)('edgesToRuns (%s)', (_, kernels) => {
  it('turns each start and end into a start and a length, and touches nothing else', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(2 ** 30), fc.nat(2 ** 30)), { maxLength: 40 }), (pairs) => {
        const memory = new Uint32Array(kernels.bytes().buffer, EDGES_AT, pairs.length * 2 + 4);
        memory.set([...pairs.flatMap(([start, length]) => [start, start + length]), 7, 8, 9, 10]);
        kernels.edgesToRuns(EDGES_AT, pairs.length);
        expect([...memory]).toEqual([...pairs.flat(), 7, 8, 9, 10]);
      }),
      { numRuns: 100 },
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
