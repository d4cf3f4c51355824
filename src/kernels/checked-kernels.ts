/**
 * Argument checks in front of either implementation. A wrong pointer inside the memory would not trap but
 * overwrite something else, so ranges are checked here, once for a batch.
 */

import { PAGE_SIZE_BYTES } from '../types.js';
import { DecodeResult } from './decode-result.js';
import type { DecodeJob, DecodeOutcome, EncodeJob, EncodeTotals, Kernels, Pointer } from './kernels.js';
import {
  ANCHOR_CAPACITY_BYTES,
  BASE_ZERO_PAGE,
  controlCapacityBytes,
  dataCapacityBytes,
  edgeCapacityBytes,
  SCAN_WORDS,
} from './kernels.js';
import type { LinearMemory } from './linear-memory.js';

/**
 * The functions without checks: the exports of the WebAssembly module, or their twins. Numbers are unsigned
 * 32-bit.
 */
export interface RawKernels {
  scanEdges(bitmap: number, wordCount: number, firstBit: number, out: number): number;
  edgesToRuns(edges: number, runCount: number): void;
  popcount(bitmap: number, wordCount: number): number;
  orInto(dst: number, src: number, wordCount: number): void;
  andNot(dst: number, src: number, wordCount: number): void;
  encodePages(
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
  ): void;
  decodeInto(
    codec: number,
    control: number,
    controlLength: number,
    data: number,
    dataLength: number,
    page: number,
  ): number;
  decodePages(
    count: number,
    codecs: number,
    controlLengths: number,
    dataLengths: number,
    pages: number,
    control: number,
    controlBytes: number,
    data: number,
    dataBytes: number,
  ): number;
  isZeroPages(pages: number, pageCount: number, outBitmap: number): void;
  findAnchors(page: number, out: number): number;
  hash64(ptr: number, lengthBytes: number, seed: bigint): bigint;
}

/** Bits are numbered in 32 bits, and so is the end of the last run. */
const MAX_WORD_COUNT = 2 ** 26 - 1;

export class CheckedKernels implements Kernels {
  constructor(
    readonly kind: 'wasm' | 'scalar',
    private readonly linear: LinearMemory,
    private readonly raw: RawKernels,
  ) {}

  bytes(): Uint8Array {
    return this.linear.bytes();
  }

  ensure(sizeBytes: number): void {
    this.linear.ensure(sizeBytes);
  }

  scanEdges(bitmap: Pointer, wordCount: number, firstBit: number, out: Pointer): number {
    this.checkWords('bitmap', bitmap - 8, wordCount + 1);
    if (wordCount % SCAN_WORDS !== 0)
      throw new RangeError(`${wordCount} words: not a multiple of ${SCAN_WORDS}`);
    checkCount('firstBit', firstBit);
    if (firstBit + wordCount * 64 > 2 ** 32)
      throw new RangeError(`bits from ${firstBit}, ${wordCount} words of them`);
    this.checkRange('out', out, edgeCapacityBytes(wordCount), 4);
    // The results of WebAssembly are signed.
    return this.raw.scanEdges(bitmap, wordCount, firstBit, out) >>> 0;
  }

  edgesToRuns(edges: Pointer, runCount: number): void {
    checkCount('runCount', runCount);
    this.checkRange('edges', edges, runCount * 8, 4);
    this.raw.edgesToRuns(edges, runCount);
  }

  popcount(bitmap: Pointer, wordCount: number): number {
    this.checkWords('bitmap', bitmap, wordCount);
    return this.raw.popcount(bitmap, wordCount) >>> 0;
  }

  orInto(dst: Pointer, src: Pointer, wordCount: number): void {
    this.checkWords('dst', dst, wordCount);
    this.checkWords('src', src, wordCount);
    this.raw.orInto(dst, src, wordCount);
  }

  andNot(dst: Pointer, src: Pointer, wordCount: number): void {
    this.checkWords('dst', dst, wordCount);
    this.checkWords('src', src, wordCount);
    this.raw.andNot(dst, src, wordCount);
  }

  encodePages(job: EncodeJob): EncodeTotals {
    const { pageCount } = job;
    checkCount('pageCount', pageCount);
    this.checkRange('newPages', job.newPages, pageCount * PAGE_SIZE_BYTES, 1);
    this.checkRange('bases', job.bases, pageCount * 4, 4);
    this.checkRange('codecs', job.codecs, pageCount, 1);
    this.checkRange('controlLengths', job.controlLengths, pageCount * 2, 2);
    this.checkRange('dataLengths', job.dataLengths, pageCount * 2, 2);
    this.checkRange('control', job.control, controlCapacityBytes(pageCount), 1);
    this.checkRange('data', job.data, dataCapacityBytes(pageCount), 1);
    this.checkRange('result', job.result, 8, 4);
    const buffer = this.linear.bytes().buffer;
    this.checkPages('base page', job.bases, pageCount);
    this.raw.encodePages(
      pageCount,
      job.newPages,
      job.bases,
      job.codecs,
      job.controlLengths,
      job.dataLengths,
      job.control,
      job.data,
      job.result,
      job.updateBases ? 1 : 0,
    );
    const totals = new Uint32Array(buffer, job.result, 2);
    return { controlBytes: totals[0]!, dataBytes: totals[1]! };
  }

  decodeInto(
    codec: number,
    control: Pointer,
    controlLength: number,
    data: Pointer,
    dataLength: number,
    page: Pointer,
  ): DecodeResult {
    this.checkRange('control', control, controlLength, 1);
    this.checkRange('data', data, dataLength, 1);
    this.checkRange('page', page, PAGE_SIZE_BYTES, 1);
    // Conversion to a WebAssembly integer would wrap, and make 2^32 + 1 a valid id.
    if (!(Number.isInteger(codec) && codec >= 0 && codec <= 0xff)) return DecodeResult.UnknownCodec;
    return this.raw.decodeInto(codec, control, controlLength, data, dataLength, page) as DecodeResult;
  }

  decodePages(job: DecodeJob): DecodeOutcome {
    const { count } = job;
    checkCount('count', count);
    if (count >= 2 ** 24) throw new RangeError(`${count} records, at most ${2 ** 24 - 1}`);
    this.checkRange('codecs', job.codecs, count, 1);
    this.checkRange('controlLengths', job.controlLengths, count * 2, 2);
    this.checkRange('dataLengths', job.dataLengths, count * 2, 2);
    this.checkRange('pages', job.pages, count * 4, 4);
    this.checkRange('control', job.control, job.controlBytes, 1);
    this.checkRange('data', job.data, job.dataBytes, 1);
    this.checkPages('page', job.pages, count);
    const failed =
      this.raw.decodePages(
        count,
        job.codecs,
        job.controlLengths,
        job.dataLengths,
        job.pages,
        job.control,
        job.controlBytes,
        job.data,
        job.dataBytes,
      ) >>> 0;
    return { result: (failed & 0xff) as DecodeResult, record: failed >>> 8 };
  }

  isZeroPages(pages: Pointer, pageCount: number, outBitmap: Pointer): void {
    checkCount('pageCount', pageCount);
    this.checkRange('pages', pages, pageCount * PAGE_SIZE_BYTES, 1);
    this.checkWords('outBitmap', outBitmap, Math.ceil(pageCount / 64));
    this.raw.isZeroPages(pages, pageCount, outBitmap);
  }

  findAnchors(page: Pointer, out: Pointer): number {
    this.checkRange('page', page, PAGE_SIZE_BYTES, 1);
    this.checkRange('out', out, ANCHOR_CAPACITY_BYTES, 4);
    return this.raw.findAnchors(page, out) >>> 0;
  }

  hash64(ptr: Pointer, lengthBytes: number, seed: bigint): bigint {
    this.checkRange('ptr', ptr, lengthBytes, 1);
    return BigInt.asUintN(64, this.raw.hash64(ptr, lengthBytes, seed));
  }

  /** Pointers to whole pages; those that mean no page aside. */
  private checkPages(name: string, pointers: Pointer, count: number): void {
    const { buffer } = this.linear.bytes();
    const last = buffer.byteLength - PAGE_SIZE_BYTES;
    for (const pointer of new Uint32Array(buffer, pointers, count)) {
      if (pointer > BASE_ZERO_PAGE && pointer > last) {
        throw new RangeError(
          `${name} at ${pointer} lies outside the linear memory of ${buffer.byteLength} bytes`,
        );
      }
    }
  }

  private checkWords(name: string, pointer: Pointer, wordCount: number): void {
    checkCount(`words of ${name}`, wordCount);
    if (wordCount > MAX_WORD_COUNT)
      throw new RangeError(`${name}: ${wordCount} words, at most ${MAX_WORD_COUNT}`);
    this.checkRange(name, pointer, wordCount * 8, 8);
  }

  private checkRange(name: string, pointer: Pointer, lengthBytes: number, alignment: number): void {
    const sizeBytes = this.linear.sizeBytes;
    if (
      !(Number.isInteger(pointer) && pointer >= 0 && Number.isInteger(lengthBytes) && lengthBytes >= 0) ||
      pointer + lengthBytes > sizeBytes
    ) {
      throw new RangeError(
        `${name}: ${lengthBytes} bytes at ${pointer} in a linear memory of ${sizeBytes} bytes`,
      );
    }
    if (pointer % alignment !== 0)
      throw new RangeError(`${name}: ${pointer} is not a multiple of ${alignment}`);
  }
}

function checkCount(name: string, count: number): void {
  if (!(Number.isInteger(count) && count >= 0 && count < 2 ** 32)) {
    throw new RangeError(`${name}: ${count} is not an unsigned 32-bit number`);
  }
}
