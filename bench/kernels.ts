/**
 * Speed of the kernels alone, in GB/s of their main input: new pages for the encoder, pages written for the decoder,
 * bitmap for the scan. Working sets are larger than the last-level cache, except where named otherwise.
 *
 *     npm run build && node dist/bench/kernels.js [wasm|scalar]
 */

import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { DirtyBitmap } from '../src/bitmap/dirty-bitmap.js';
import type { EncodeJob, Kernels } from '../src/kernels/kernels.js';
import { controlCapacityBytes, dataCapacityBytes } from '../src/kernels/kernels.js';
import { createScalarKernels } from '../src/kernels/scalar.js';
import { createWasmKernels } from '../src/kernels/wasm.js';
import { PAGE_SIZE_BYTES } from '../src/types.js';

const PAGES = 32 * 1024;
/** As `bitmap/scan.ts` passes them. */
const WINDOW_WORDS = 8 * 1024;
const BATCH = 512;
const PAGE_BYTES = PAGES * PAGE_SIZE_BYTES;

const NEW_AT = 64 * 1024;
const BASE_AT = NEW_AT + PAGE_BYTES;
const BASES_AT = BASE_AT + PAGE_BYTES;
const CODECS_AT = BASES_AT + BATCH * 4;
const CONTROL_LENGTHS_AT = CODECS_AT + BATCH;
const DATA_LENGTHS_AT = CONTROL_LENGTHS_AT + BATCH * 2;
const RESULT_AT = DATA_LENGTHS_AT + BATCH * 2;
const CONTROL_AT = RESULT_AT + 64;
const DATA_AT = CONTROL_AT + controlCapacityBytes(BATCH);
const MEMORY_BYTES = DATA_AT + dataCapacityBytes(BATCH);

type Row = readonly [name: string, gigabytesPerSecond: number, note: string];

export function benchKernels(kernels: Kernels, rounds: number): Row[] {
  kernels.ensure(MEMORY_BYTES);
  return [...benchEncode(kernels, rounds), ...benchRest(kernels, rounds), ...benchScan(kernels, rounds)];
}

/** Best of `rounds`: the machine's other work only ever makes it slower. */
function measure(rounds: number, bytes: number, run: () => void): number {
  let best = Infinity;
  for (let round = 0; round < rounds; round++) {
    const start = process.hrtime.bigint();
    run();
    best = Math.min(best, Number(process.hrtime.bigint() - start));
  }
  return bytes / best;
}

/** xorshift32, so that every run of the benchmark sees the same pages. */
function randomSource(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

function fillRandom(words: Uint32Array, random: () => number): void {
  for (let i = 0; i < words.length; i++) words[i] = random();
}

function benchEncode(kernels: Kernels, rounds: number): Row[] {
  const memory = kernels.bytes();
  const random = randomSource(1);
  const old = memory.subarray(BASE_AT, BASE_AT + PAGE_BYTES);
  const now = memory.subarray(NEW_AT, NEW_AT + PAGE_BYTES);
  fillRandom(new Uint32Array(memory.buffer, BASE_AT, PAGE_BYTES / 4), random);
  const flip = (count: number, lengthBytes: number) => {
    now.set(old);
    for (let page = 0; page < PAGES; page++) {
      for (let i = 0; i < count; i++) {
        const at = page * PAGE_SIZE_BYTES + (random() % (PAGE_SIZE_BYTES - lengthBytes));
        for (let k = 0; k < lengthBytes; k++) now[at + k]! ^= 0xff;
      }
    }
  };
  const cases: readonly (readonly [string, () => void])[] = [
    ['unchanged', () => now.set(old)],
    ['sparse: 4 x 8 bytes a page', () => flip(4, 8)],
    ['scattered: 64 x 4 bytes a page', () => flip(64, 4)],
    ['scattered: 300 x 1 byte a page', () => flip(300, 1)],
    ['half a page in one run', () => flip(1, 2048)],
    [
      'raw: rewritten with random bytes',
      () => fillRandom(new Uint32Array(memory.buffer, NEW_AT, PAGE_BYTES / 4), random),
    ],
    ['zero', () => now.fill(0)],
  ];
  const rows: Row[] = [];
  for (const [name, prepare] of cases) {
    prepare();
    let stored = 0;
    const speed = measure(rounds, PAGE_BYTES, () => {
      stored = encodeAll(kernels, false);
    });
    rows.push([`encode ${name}`, speed, `${((100 * stored) / PAGE_BYTES).toFixed(2)} % stored`]);
  }
  flip(4, 8);
  const update = measure(1, PAGE_BYTES, () => encodeAll(kernels, true));
  rows.push(['encode sparse, bases updated', update, 'one round']);
  flip(64, 4);
  rows.push(['decode scattered: 64 x 4 bytes a page', benchDecode(kernels, rounds), 'one batch, in cache']);
  return rows;
}

function encodeJob(pageCount: number, newPages: number, updateBases: boolean): EncodeJob {
  return {
    pageCount,
    newPages,
    bases: BASES_AT,
    codecs: CODECS_AT,
    controlLengths: CONTROL_LENGTHS_AT,
    dataLengths: DATA_LENGTHS_AT,
    control: CONTROL_AT,
    data: DATA_AT,
    result: RESULT_AT,
    updateBases,
  };
}

function encodeBatch(kernels: Kernels, first: number, updateBases: boolean): number {
  const bases = new Uint32Array(kernels.bytes().buffer, BASES_AT, BATCH);
  for (let i = 0; i < BATCH; i++) bases[i] = BASE_AT + (first + i) * PAGE_SIZE_BYTES;
  const totals = kernels.encodePages(encodeJob(BATCH, NEW_AT + first * PAGE_SIZE_BYTES, updateBases));
  return totals.controlBytes + totals.dataBytes;
}

function encodeAll(kernels: Kernels, updateBases: boolean): number {
  let stored = 0;
  for (let first = 0; first < PAGES; first += BATCH) stored += encodeBatch(kernels, first, updateBases);
  return stored;
}

function benchDecode(kernels: Kernels, rounds: number): number {
  encodeBatch(kernels, 0, false);
  const memory = kernels.bytes();
  const codecs = memory.slice(CODECS_AT, CODECS_AT + BATCH);
  const controlLengths = new Uint16Array(memory.buffer, CONTROL_LENGTHS_AT, BATCH).slice();
  const dataLengths = new Uint16Array(memory.buffer, DATA_LENGTHS_AT, BATCH).slice();
  return measure(rounds * 4, BATCH * PAGE_SIZE_BYTES, () => {
    let control = CONTROL_AT;
    let data = DATA_AT;
    for (let i = 0; i < BATCH; i++) {
      const page = BASE_AT + i * PAGE_SIZE_BYTES;
      kernels.decodeInto(codecs[i]!, control, controlLengths[i]!, data, dataLengths[i]!, page);
      control += controlLengths[i]!;
      data += dataLengths[i]!;
    }
  });
}

function benchRest(kernels: Kernels, rounds: number): Row[] {
  const memory = kernels.bytes();
  const words = PAGE_BYTES / 8;
  const rows: Row[] = [];
  memory.fill(0, NEW_AT, NEW_AT + PAGE_BYTES);
  rows.push([
    'isZeroPages, all zero',
    measure(rounds, PAGE_BYTES, () => kernels.isZeroPages(NEW_AT, PAGES, CONTROL_AT)),
    '',
  ]);
  if (kernels.kind === 'wasm') {
    rows.push(['hash64', measure(rounds, PAGE_BYTES, () => kernels.hash64(NEW_AT, PAGE_BYTES, 0n)), '']);
  }
  rows.push(['popcount', measure(rounds, PAGE_BYTES, () => kernels.popcount(NEW_AT, words)), '']);
  rows.push(['orInto', measure(rounds, PAGE_BYTES, () => kernels.orInto(BASE_AT, NEW_AT, words)), '']);
  rows.push([
    'copy of the same size, for comparison',
    measure(rounds, PAGE_BYTES, () => memory.copyWithin(BASE_AT, NEW_AT, NEW_AT + PAGE_BYTES)),
    '',
  ]);
  return rows;
}

/** The bitmap of a 1 TiB guest, 32 MiB; in the kernel's own memory, and through DirtyBitmap. */
function benchScan(kernels: Kernels, rounds: number): Row[] {
  const bitmapBytes = 32 * 1024 * 1024;
  const pageCount = bitmapBytes * 8;
  const words = bitmapBytes / 8;
  const memory = kernels.bytes();
  const bitmap = memory.subarray(NEW_AT, NEW_AT + bitmapBytes);
  const random = randomSource(2);
  const scatter = (density: number) => {
    bitmap.fill(0);
    for (let left = pageCount * density; left > 0; left--) {
      const bit = random() % pageCount;
      bitmap[bit >>> 3]! |= 1 << (bit & 7);
    }
  };
  const cases: readonly (readonly [string, () => void])[] = [
    ['density 0', () => bitmap.fill(0)],
    ['density 0.01 %', () => scatter(0.0001)],
    ['density 1 %', () => scatter(0.01)],
    ['density 50 %', () => fillRandom(new Uint32Array(memory.buffer, NEW_AT, bitmapBytes / 4), random)],
    [
      'density 1 %, clusters of 512 pages',
      () => {
        bitmap.fill(0);
        for (let i = 0; i < pageCount / 512 / 100; i++) {
          const first = (random() % (pageCount / 512)) * 64;
          bitmap.fill(0xff, first, first + 64);
        }
      },
    ],
    ['all set', () => bitmap.fill(0xff)],
  ];
  const rows: Row[] = [];
  for (const [name, prepare] of cases) {
    prepare();
    let edgeCount = 0;
    const speed = measure(rounds, bitmapBytes, () => {
      edgeCount = 0;
      for (let word = 0; word < words; word += WINDOW_WORDS)
        edgeCount += kernels.scanEdges(
          NEW_AT + word * 8,
          Math.min(WINDOW_WORDS, words - word),
          word * 64,
          BASE_AT,
        );
    });
    const copy = DirtyBitmap.fromBytes(pageCount, bitmap);
    const whole = measure(rounds, bitmapBytes, () => copy.toRuns());
    rows.push([
      `scanEdges ${name}`,
      speed,
      `${edgeCount} edges; DirtyBitmap.toRuns ${whole.toFixed(2)} GB/s`,
    ]);
  }
  return rows;
}

function main(): void {
  const scalar = process.argv[2] === 'scalar';
  const rows = benchKernels(scalar ? createScalarKernels() : createWasmKernels(), scalar ? 1 : 5);
  console.log(
    `${cpus()[0]?.model ?? 'unknown processor'}, Node ${process.version}, ${new Date().toISOString()}`,
  );
  for (const [name, speed, note] of rows)
    console.log(`${name.padEnd(46)} ${speed.toFixed(2).padStart(7)} GB/s  ${note}`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main();
