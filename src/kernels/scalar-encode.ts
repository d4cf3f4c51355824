/** Twin of `assembly/encode.ts`: page by page, byte by byte. */

import { CODEC_RAW, CODEC_RUNS, CODEC_SAME, CODEC_ZERO } from './codec-ids.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import { BASE_NONE, BASE_ZERO_PAGE } from './kernels.js';

/**
 * Runs at most this many equal bytes apart become one. A gap kept as a gap costs two control bytes (its own
 * varint and the next run's length), a gap merged costs its length in data: at 2 it is even, and fewer runs
 * encode and decode faster. (One byte is lost when a merge by 2 takes the length past 127; not worth a second
 * test.)
 */
const MERGE_GAP = 2;

const ZERO_PAGE = new Uint8Array(PAGE_SIZE_BYTES);

/** A run of changed bytes: [start, end) within the page. */
interface ByteRun {
  readonly start: number;
  end: number;
}

/** Arguments as `RawKernels.encodePages`, on the memory's bytes. */
export function scalarEncodePages(
  memory: Uint8Array,
  pageCount: number,
  newPages: number,
  bases: number,
  codecs: number,
  controlLengths: number,
  dataLengths: number,
  control: number,
  data: number,
  result: number,
  updateBases: number,
): void {
  const buffer = memory.buffer;
  const baseOf = new Uint32Array(buffer, bases, pageCount);
  const controlLengthOf = new Uint16Array(buffer, controlLengths, pageCount);
  const dataLengthOf = new Uint16Array(buffer, dataLengths, pageCount);
  let controlEnd = control;
  let dataEnd = data;
  for (let i = 0; i < pageCount; i++) {
    const first = newPages + i * PAGE_SIZE_BYTES;
    const page = memory.subarray(first, first + PAGE_SIZE_BYTES);
    const base = baseOf[i]!;
    const basePage = basePageAt(memory, base);
    const runs = basePage === undefined ? undefined : findRuns(page, basePage);
    const record = chooseRecord(page, runs);
    memory.set(record.control, controlEnd);
    memory.set(record.data, dataEnd);
    memory[codecs + i] = record.codec;
    controlLengthOf[i] = record.control.length;
    dataLengthOf[i] = record.data.length;
    controlEnd += record.control.length;
    dataEnd += record.data.length;
    if (updateBases !== 0 && base > BASE_ZERO_PAGE && record.codec !== CODEC_SAME) memory.set(page, base);
  }
  const totals = new Uint32Array(buffer, result, 2);
  totals[0] = controlEnd - control;
  totals[1] = dataEnd - data;
}

function basePageAt(memory: Uint8Array, base: number): Uint8Array | undefined {
  if (base === BASE_NONE) return undefined;
  return base === BASE_ZERO_PAGE ? ZERO_PAGE : memory.subarray(base, base + PAGE_SIZE_BYTES);
}

function chooseRecord(
  page: Uint8Array,
  runs: readonly ByteRun[] | undefined,
): { readonly codec: number; readonly control: readonly number[]; readonly data: ArrayLike<number> } {
  if (runs?.length === 0) return { codec: CODEC_SAME, control: [], data: [] };
  if (page.every((byte) => byte === 0)) return { codec: CODEC_ZERO, control: [], data: [] };
  if (runs !== undefined) {
    const control: number[] = [];
    const data: number[] = [];
    let previousEnd = 0;
    for (const { start, end } of runs) {
      pushVarint(control, start - previousEnd);
      pushVarint(control, end - start);
      for (let at = start; at < end; at++) data.push(page[at]!);
      previousEnd = end;
    }
    if (control.length + data.length < PAGE_SIZE_BYTES) return { codec: CODEC_RUNS, control, data };
  }
  return { codec: CODEC_RAW, control: [], data: page };
}

function findRuns(page: Uint8Array, base: Uint8Array): ByteRun[] {
  const runs: ByteRun[] = [];
  let last: ByteRun | undefined;
  for (let at = 0; at < PAGE_SIZE_BYTES; at++) {
    if (page[at] === base[at]) continue;
    if (last !== undefined && at - last.end <= MERGE_GAP) {
      last.end = at + 1;
    } else {
      last = { start: at, end: at + 1 };
      runs.push(last);
    }
  }
  return runs;
}

function pushVarint(to: number[], value: number): void {
  if (value < 128) to.push(value);
  else to.push((value & 127) | 128, value >>> 7);
}
