/** Pages to encode, and a decoder written from the format's text alone, for the property tests. */

import fc from 'fast-check';
import type { Kernels } from '../../src/kernels/kernels.js';
import {
  BASE_NONE,
  BASE_ZERO_PAGE,
  controlCapacityBytes,
  dataCapacityBytes,
} from '../../src/kernels/kernels.js';
import { createScalarKernels } from '../../src/kernels/scalar.js';
import { createWasmKernels } from '../../src/kernels/wasm.js';

export const PAGE = 4096;

/** Fresh instances: a test may grow and fill their memories as it likes. */
export function bothKernels(): readonly [wasm: Kernels, scalar: Kernels] {
  return [createWasmKernels(), createScalarKernels()];
}

/** xorshift32; the seed must not be 0. */
export function randomSource(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

export function randomPage(seed: number): Uint8Array {
  const random = randomSource(seed);
  return Uint8Array.from({ length: PAGE }, () => random() & 0xff);
}

/** A stretch of the page that is written anew: `step` 1 changes every byte, 4 every fourth. */
interface Change {
  readonly at: number;
  readonly length: number;
  readonly step: number;
}

const change: fc.Arbitrary<Change> = fc.record({
  at: fc.oneof(fc.nat(PAGE - 1), fc.constantFrom(0, 1, 2, 15, 16, 63, 64, 127, 4080, 4081, 4094, 4095)),
  length: fc.oneof(
    { weight: 4, arbitrary: fc.integer({ min: 1, max: 24 }) },
    { weight: 2, arbitrary: fc.integer({ min: 100, max: 300 }) },
    { weight: 1, arbitrary: fc.integer({ min: 1, max: PAGE }) },
  ),
  step: fc.oneof(
    { weight: 3, arbitrary: fc.constant(1) },
    { weight: 2, arbitrary: fc.integer({ min: 2, max: 9 }) },
  ),
});

export type BaseKind = 'none' | 'zero page' | 'page';

export interface PagePair {
  readonly page: Uint8Array;
  /** What the page held before; undefined for BASE_NONE. */
  readonly base: Uint8Array | undefined;
  readonly baseKind: BaseKind;
}

/** Sparse, clustered, scattered, equal, zero and wholly random pages, against all three kinds of base. */
export const pagePair: fc.Arbitrary<PagePair> = fc
  .record({
    baseKind: fc.constantFrom<BaseKind>('none', 'zero page', 'page', 'page', 'page'),
    baseContent: fc.oneof(
      { weight: 4, arbitrary: fc.integer({ min: 1 }).map(randomPage) },
      { weight: 1, arbitrary: fc.constant(new Uint8Array(PAGE)) },
    ),
    change: fc.oneof(
      { weight: 8, arbitrary: fc.array(change, { maxLength: 12 }) },
      { weight: 2, arbitrary: fc.array(change, { minLength: 50, maxLength: 400 }) },
      { weight: 1, arbitrary: fc.constant('zero' as const) },
      { weight: 1, arbitrary: fc.constant('random' as const) },
    ),
  })
  .map(({ baseKind, baseContent, change }) => {
    const before = baseKind === 'page' ? baseContent : new Uint8Array(PAGE);
    let page: Uint8Array = before.slice();
    if (change === 'zero') page.fill(0);
    else if (change === 'random') page = randomPage(before[0]! + 77);
    else {
      for (const { at, length, step } of change) {
        for (let i = at; i < Math.min(at + length, PAGE); i += step) page[i]! ^= 0x5a;
      }
    }
    return { page, base: baseKind === 'none' ? undefined : before, baseKind };
  });

export interface EncodedBatch {
  readonly codecs: Uint8Array;
  readonly controlLengths: Uint16Array;
  readonly dataLengths: Uint16Array;
  readonly control: Uint8Array;
  readonly data: Uint8Array;
  /** The bases of kind 'page' as they are after the call, in order. */
  readonly basesAfter: readonly Uint8Array[];
}

const GUARD = 0xa5;
const GUARD_BYTES = 64;

/**
 * Lays a batch out in linear memory, each region between guard bytes, encodes it and takes the results out.
 * @throws Error when a guard byte was overwritten or an input changed that must not
 */
export function encodeBatch(
  kernels: Kernels,
  pairs: readonly PagePair[],
  updateBases: boolean,
): EncodedBatch {
  const count = pairs.length;
  let end = 64;
  const guards: number[] = [];
  const place = (sizeBytes: number) => {
    const at = end;
    guards.push(at + sizeBytes);
    end = Math.ceil((at + sizeBytes + GUARD_BYTES) / 8) * 8;
    return at;
  };
  const newPages = place(count * PAGE);
  const basePages = pairs.map((pair) => (pair.baseKind === 'page' ? place(PAGE) : 0));
  const job = {
    pageCount: count,
    newPages,
    bases: place(count * 4),
    codecs: place(count),
    controlLengths: place(count * 2),
    dataLengths: place(count * 2),
    control: place(controlCapacityBytes(count)),
    data: place(dataCapacityBytes(count)),
    result: place(8),
    updateBases,
  };
  kernels.ensure(end);
  const memory = kernels.bytes();
  memory.fill(GUARD, 0, end);
  const bases = new Uint32Array(memory.buffer, job.bases, count);
  pairs.forEach(({ page, base, baseKind }, i) => {
    memory.set(page, newPages + i * PAGE);
    if (baseKind === 'page') memory.set(base!, basePages[i]);
    bases[i] = { none: BASE_NONE, 'zero page': BASE_ZERO_PAGE, page: basePages[i]! }[baseKind];
  });
  const totals = kernels.encodePages(job);
  for (const at of guards) {
    for (let i = at; i < at + GUARD_BYTES; i++)
      if (memory[i] !== GUARD) throw new Error(`guard byte ${i} overwritten`);
  }
  pairs.forEach(({ page }, i) => {
    if (!same(memory.subarray(newPages + i * PAGE, newPages + (i + 1) * PAGE), page))
      throw new Error('input changed');
  });
  const stored = new Uint32Array(memory.buffer, job.result, 2);
  if (stored[0] !== totals.controlBytes || stored[1] !== totals.dataBytes) throw new Error('totals differ');
  return {
    codecs: memory.slice(job.codecs, job.codecs + count),
    controlLengths: new Uint16Array(memory.buffer, job.controlLengths, count).slice(),
    dataLengths: new Uint16Array(memory.buffer, job.dataLengths, count).slice(),
    control: memory.slice(job.control, job.control + totals.controlBytes),
    data: memory.slice(job.data, job.data + totals.dataBytes),
    basesAfter: basePages.filter((at) => at !== 0).map((at) => memory.slice(at, at + PAGE)),
  };
}

export function same(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** The (gap, length) pairs of a control stream, or undefined when it is not made of whole, shortest varints. */
export function parseControl(
  control: Uint8Array,
): { readonly gap: number; readonly length: number }[] | undefined {
  const numbers: number[] = [];
  for (let at = 0; at < control.length;) {
    let value = 0;
    let shift = 0;
    let byte: number;
    do {
      if (at === control.length) return undefined;
      byte = control[at++]!;
      value += (byte & 0x7f) * 2 ** shift;
      shift += 7;
    } while (byte >= 128);
    if (shift > 14 || (shift > 7 && byte === 0)) return undefined;
    numbers.push(value);
  }
  if (numbers.length % 2 !== 0) return undefined;
  return numbers.flatMap((gap, i) => (i % 2 === 0 ? [{ gap, length: numbers[i + 1]! }] : []));
}

/** The page a `runs` record makes of `base`, or undefined when it is not a valid record. */
export function applyRuns(base: Uint8Array, control: Uint8Array, data: Uint8Array): Uint8Array | undefined {
  const runs = parseControl(control);
  if (runs === undefined || runs.length === 0 || control.length + data.length >= PAGE) return undefined;
  const page = base.slice();
  let at = 0;
  let used = 0;
  for (const { gap, length } of runs) {
    at += gap;
    if (length === 0 || at + length > PAGE || used + length > data.length) return undefined;
    for (let i = 0; i < length; i++) page[at++] = data[used++]!;
  }
  return used === data.length ? page : undefined;
}
