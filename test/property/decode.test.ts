import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { CODEC_RAW, CODEC_RUNS, CODEC_SAME, CODEC_ZERO } from '../../src/kernels/codec-ids.js';
import type { Kernels } from '../../src/kernels/kernels.js';
import { DecodeResult } from '../../src/kernels/decode-result.js';
import {
  applyRuns,
  bothKernels,
  encodeBatch,
  PAGE,
  pagePair,
  randomPage,
  randomSource,
  same,
} from './page-models.js';

/**
 * Memory of the decoder in these tests; everything but the page must stay as it is.
 *
 *     0        64     4160     4224          16384         32768
 *     | guard  | page | guard  | control     | data        | guard ...
 */
const PAGE_AT = 64;
const CONTROL_AT = PAGE_AT + PAGE + 64;
const DATA_AT = 16_384;
const MEMORY_BYTES = 65_536;

interface Record {
  codec: number;
  controlLength: number;
  dataLength: number;
  readonly control: Uint8Array;
  readonly data: Uint8Array;
}

const ALL_RESULTS = new Set<number>(Object.values(DecodeResult));
const BASE = randomPage(4711);

function decode(kernels: Kernels, record: Record): number {
  const memory = kernels.bytes();
  memory.set(BASE, PAGE_AT);
  memory.set(record.control, CONTROL_AT);
  memory.set(record.data, DATA_AT);
  return kernels.decodeInto(
    record.codec,
    CONTROL_AT,
    record.controlLength,
    DATA_AT,
    record.dataLength,
    PAGE_AT,
  );
}

/** Valid records of many shapes against BASE, as encoded. */
function validRecords(kernels: Kernels): Record[] {
  const random = randomSource(99);
  const pages = Array.from({ length: 160 }, (_, i): Uint8Array => {
    const page: Uint8Array = BASE.slice();
    const runCount = [1, 2, 3, 5, 12, 40][i % 6]!;
    for (let run = 0; run < runCount; run++) {
      const at = random() % PAGE;
      const length = [1, 2, 7, 8, 20, 130][random() % 6]!;
      for (let k = at; k < Math.min(at + length, PAGE); k++) page[k]! ^= 1 + (random() & 0x7f);
    }
    return page;
  });
  pages.push(new Uint8Array(PAGE), BASE.slice(), randomPage(3));
  const batch = encodeBatch(
    kernels,
    pages.map((page) => ({ page, base: BASE, baseKind: 'page' as const })),
    false,
  );
  let controlAt = 0;
  let dataAt = 0;
  return pages.map((_, i) => {
    const controlLength = batch.controlLengths[i]!;
    const dataLength = batch.dataLengths[i]!;
    const control = batch.control.slice(controlAt, (controlAt += controlLength));
    const data = batch.data.slice(dataAt, (dataAt += dataLength));
    return { codec: batch.codecs[i]!, controlLength, dataLength, control, data };
  });
}

/** An endless stream of damaged records: valid ones with a few changes, and pure noise. The object is reused. */
function damagedRecords(valid: readonly Record[], seed: number): () => Record {
  const random = randomSource(seed);
  const noise = new Uint8Array(256);
  const interesting = [0x00, 0x01, 0x7f, 0x80, 0x81, 0xff];
  return () => {
    if (random() % 8 === 0) {
      for (let i = 0; i < noise.length; i++) noise[i] = random();
      const controlLength = random() % 33;
      return { codec: CODEC_RUNS, controlLength, dataLength: random() % 257, control: noise, data: noise };
    }
    const from = valid[random() % valid.length]!;
    const record = { ...from, control: from.control.slice() };
    for (let changes = random() % 4; changes > 0; changes--) {
      const at = random() % (record.control.length + 1);
      switch (random() % 8) {
        case 0:
          record.codec = random() & 7;
          break;
        case 1:
          record.controlLength = Math.max(0, record.controlLength + (random() % 9) - 4);
          break;
        case 2:
          record.dataLength = Math.max(0, record.dataLength + (random() % 9) - 4);
          break;
        case 3:
          record.dataLength = random() & 0x1fff;
          break;
        case 4:
          record.controlLength = random() & 0x1fff;
          break;
        case 5:
          if (at < record.control.length) record.control[at] = interesting[random() % interesting.length]!;
          break;
        case 6:
          if (at < record.control.length) record.control[at]! ^= 1 << (random() & 7);
          break;
        default:
          if (at < record.control.length) record.control[at] = random();
      }
    }
    return record;
  };
}

/** The page a record must make of BASE, or undefined when it must be refused. Reads the streams as they lie in memory. */
function expectedPage(memory: Uint8Array, record: Record): Uint8Array | undefined {
  const control = memory.subarray(CONTROL_AT, CONTROL_AT + record.controlLength);
  const data = memory.subarray(DATA_AT, DATA_AT + record.dataLength);
  const empty = control.length === 0 && data.length === 0;
  switch (record.codec) {
    case CODEC_ZERO:
      return empty ? new Uint8Array(PAGE) : undefined;
    case CODEC_SAME:
      return empty ? BASE : undefined;
    case CODEC_RAW:
      return control.length === 0 && data.length === PAGE ? data : undefined;
    case CODEC_RUNS:
      return applyRuns(BASE, control, data);
    default:
      return undefined;
  }
}

describe('decodeInto', () => {
  it('brings back every encoded page', () => {
    const [wasm, scalar] = bothKernels();
    const encoder = bothKernels()[0];
    fc.assert(
      fc.property(pagePair, (pair) => {
        const batch = encodeBatch(encoder, [pair], false);
        for (const kernels of [wasm, scalar]) {
          const memory = kernels.bytes();
          // Whatever was there must not matter when there is no base.
          memory.set(pair.base ?? BASE, PAGE_AT);
          memory.set(batch.control, CONTROL_AT);
          memory.set(batch.data, DATA_AT);
          const lengths = [batch.control.length, batch.data.length] as const;
          const result = kernels.decodeInto(
            batch.codecs[0]!,
            CONTROL_AT,
            lengths[0],
            DATA_AT,
            lengths[1],
            PAGE_AT,
          );
          expect(result).toBe(DecodeResult.Ok);
          expect(same(memory.subarray(PAGE_AT, PAGE_AT + PAGE), pair.page)).toBe(true);
        }
      }),
      { numRuns: 500 },
    );
  });

  it('survives a million damaged records: right page or an error number, and never a byte beside the page', () => {
    const [wasm] = bothKernels();
    const next = damagedRecords(validRecords(bothKernels()[0]), 20_260);
    const memory = wasm.bytes();
    memory.fill(0xa5);
    const words = new BigUint64Array(memory.buffer);
    const guardWord = 0xa5a5a5a5a5a5a5a5n;
    const page = memory.subarray(PAGE_AT, PAGE_AT + PAGE);
    const seen = new Map<number, number>();
    for (let i = 0; i < 1_000_000; i++) {
      const record = next();
      const result = decode(wasm, record);
      seen.set(result, (seen.get(result) ?? 0) + 1);
      for (let k = 0; k < 8; k++) {
        if (words[k] !== guardWord || words[(PAGE_AT + PAGE) / 8 + k] !== guardWord) {
          throw new Error(`record ${i} wrote beside the page`);
        }
      }
      // Far writes: streams and the rest of the memory, now and then.
      if (i % 5000 === 0) {
        expect(same(memory.subarray(CONTROL_AT, CONTROL_AT + record.control.length), record.control)).toBe(
          true,
        );
        expect(same(memory.subarray(DATA_AT, DATA_AT + record.data.length), record.data)).toBe(true);
        for (let k = 32_768 / 8; k < MEMORY_BYTES / 8; k++)
          if (words[k] !== guardWord) throw new Error('far write');
      }
      const expected = expectedPage(memory, record);
      if ((result === 0) !== (expected !== undefined)) throw new Error(`record ${i}: result ${result}`);
      if (expected !== undefined && !same(page, expected)) throw new Error(`record ${i}: wrong page`);
    }
    // Every kind of damage has come up, and enough records were still valid to be worth checking.
    expect(new Set(seen.keys())).toEqual(ALL_RESULTS);
    expect(seen.get(DecodeResult.Ok)).toBeGreaterThan(10_000);
  });

  it('names the same error in WebAssembly and TypeScript', () => {
    const [wasm, scalar] = bothKernels();
    const next = damagedRecords(validRecords(bothKernels()[0]), 7);
    wasm.bytes().fill(0);
    scalar.bytes().fill(0);
    for (let i = 0; i < 100_000; i++) {
      const record = next();
      const [a, b] = [decode(wasm, record), decode(scalar, record)];
      if (a !== b) throw new Error(`record ${i}: ${a} in WebAssembly, ${b} in TypeScript`);
      // Up to the error, even what was written is the same.
      if (!same(wasm.bytes().subarray(0, CONTROL_AT), scalar.bytes().subarray(0, CONTROL_AT))) {
        throw new Error(`record ${i}: pages differ`);
      }
    }
  });
});

describe('decodePages', () => {
  /** Batches of records lie here: pages from PAGES_AT, then the columns, then both streams. */
  const MOST = 24;
  const PAGES_AT = 4096;
  const COLUMNS_AT = PAGES_AT + MOST * PAGE;
  const STREAMS_AT = COLUMNS_AT + MOST * 16;
  const SCRATCH = STREAMS_AT + MOST * 4 * PAGE;

  interface Outcome {
    readonly result: number;
    readonly record: number;
    readonly memory: Uint8Array;
  }

  /** As a batch when `whole`, otherwise record by record; the columns are the same. */
  function decodeBatch(
    kernels: Kernels,
    records: readonly Record[],
    pageOf: number[],
    whole: boolean,
  ): Outcome {
    kernels.ensure(SCRATCH);
    const memory = kernels.bytes();
    memory.fill(0x5a, 0, SCRATCH);
    for (let i = 0; i < MOST; i++) memory.set(BASE, PAGES_AT + i * PAGE);
    const columns = {
      pages: COLUMNS_AT,
      controlLengths: COLUMNS_AT + MOST * 4,
      dataLengths: COLUMNS_AT + MOST * 6,
      codecs: COLUMNS_AT + MOST * 8,
    };
    const pages = new Uint32Array(memory.buffer, columns.pages, MOST);
    const controlLengths = new Uint16Array(memory.buffer, columns.controlLengths, MOST);
    const dataLengths = new Uint16Array(memory.buffer, columns.dataLengths, MOST);
    let controlBytes = 0;
    for (const [i, record] of records.entries()) {
      pages[i] = PAGES_AT + pageOf[i]! * PAGE;
      controlLengths[i] = record.control.length;
      dataLengths[i] = record.data.length;
      memory[columns.codecs + i] = record.codec;
      memory.set(record.control, STREAMS_AT + controlBytes);
      controlBytes += record.control.length;
    }
    const data = STREAMS_AT + controlBytes;
    let dataBytes = 0;
    for (const record of records) {
      memory.set(record.data, data + dataBytes);
      dataBytes += record.data.length;
    }
    if (whole) {
      const outcome = kernels.decodePages({
        count: records.length,
        ...columns,
        control: STREAMS_AT,
        controlBytes,
        data,
        dataBytes,
      });
      return { ...outcome, memory: memory.slice(0, SCRATCH) };
    }
    let [controlAt, dataAt] = [STREAMS_AT, data];
    for (const [i, record] of records.entries()) {
      const { length: controlLength } = record.control;
      const { length: dataLength } = record.data;
      const result = kernels.decodeInto(
        record.codec,
        controlAt,
        controlLength,
        dataAt,
        dataLength,
        pages[i]!,
      );
      if (result !== 0) return { result, record: i, memory: memory.slice(0, SCRATCH) };
      controlAt += controlLength;
      dataAt += dataLength;
    }
    return { result: 0, record: 0, memory: memory.slice(0, SCRATCH) };
  }

  it('does what decodeInto does record by record, several to a page, up to the first malformed one', () => {
    const [wasm, scalar] = bothKernels();
    const valid = validRecords(bothKernels()[0]);
    const damaged = damagedRecords(valid, 31);
    const random = randomSource(5);
    const results = new Set<number>();
    for (let round = 0; round < 2000; round++) {
      const count = 1 + (random() % MOST);
      const records = Array.from({ length: count }, () =>
        random() % 40 === 0 ? damaged() : valid[random() % valid.length]!,
      );
      const pageOf = records.map(() => random() % MOST);
      const expected = decodeBatch(scalar, records, pageOf, false);
      for (const kernels of [wasm, scalar]) {
        const outcome = decodeBatch(kernels, records, pageOf, true);
        if (
          outcome.result !== expected.result ||
          (outcome.result !== 0 && outcome.record !== expected.record)
        )
          throw new Error(`round ${round}: ${outcome.result} at ${outcome.record}, not ${expected.result}`);
        if (!same(outcome.memory, expected.memory)) throw new Error(`round ${round}: memory differs`);
      }
      results.add(expected.result);
    }
    expect(results.has(0)).toBe(true);
    expect(results.size).toBeGreaterThan(4);
  });

  it('refuses records that need more of a stream than there is', () => {
    for (const kernels of bothKernels()) {
      kernels.ensure(4 * PAGE);
      const memory = kernels.bytes();
      memory.fill(0, 0, 4 * PAGE);
      memory[64] = CODEC_RUNS;
      new Uint16Array(memory.buffer, 66, 2).set([2, 5]);
      new Uint32Array(memory.buffer, 72, 1).set([PAGE]);
      memory.set([0, 5], 128);
      const job = {
        count: 1,
        codecs: 64,
        controlLengths: 66,
        dataLengths: 68,
        pages: 72,
        control: 128,
        data: 256,
      };
      const right = { result: DecodeResult.Ok, record: 0 };
      const tooLong = { result: DecodeResult.RecordTooLong, record: 0 };
      expect(kernels.decodePages({ ...job, controlBytes: 2, dataBytes: 5 })).toEqual(right);
      expect(kernels.decodePages({ ...job, controlBytes: 1, dataBytes: 5 })).toEqual(tooLong);
      expect(kernels.decodePages({ ...job, controlBytes: 2, dataBytes: 4 })).toEqual(tooLong);
    }
  });
});
