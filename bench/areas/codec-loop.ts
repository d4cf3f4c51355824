/** Page pairs in a kernel's memory, encoded and decoded batch by batch as a worker and a restore do. */

import {
  controlCapacityBytes,
  dataCapacityBytes,
  type EncodeJob,
  type EncodeTotals,
  type Kernels,
} from '../../src/kernels/kernels.js';
import { createWasmKernels } from '../../src/kernels/wasm.js';
import { ENCODE_BATCH_PAGES } from '../../src/pool/messages.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';

const ALIGN = PAGE_SIZE_BYTES;

/** Encodes a worker does on one message: long enough that the way into the worker does not show. */
export const ENCODES_PER_MESSAGE = 4;

export class CodecLoop {
  readonly #kernels: Kernels = createWasmKernels();
  readonly #count: number;
  readonly #newAt: number;
  readonly #baseAt: number;
  readonly #pristine: Uint8Array;
  readonly #jobs: readonly EncodeJob[];
  #totals: readonly EncodeTotals[] = [];

  constructor(before: Uint8Array, after: Uint8Array) {
    this.#pristine = before;
    this.#count = after.length / PAGE_SIZE_BYTES;
    let next = ALIGN;
    const take = (sizeBytes: number): number => {
      const at = next;
      next = Math.ceil((next + sizeBytes) / ALIGN) * ALIGN;
      return at;
    };
    this.#newAt = take(after.length);
    this.#baseAt = take(after.length);
    const jobs: EncodeJob[] = [];
    for (let from = 0; from < this.#count; from += ENCODE_BATCH_PAGES) {
      const pageCount = Math.min(ENCODE_BATCH_PAGES, this.#count - from);
      jobs.push({
        pageCount,
        newPages: this.#newAt + from * PAGE_SIZE_BYTES,
        bases: take(pageCount * 4),
        codecs: take(pageCount),
        controlLengths: take(pageCount * 2),
        dataLengths: take(pageCount * 2),
        control: take(controlCapacityBytes(pageCount)),
        data: take(dataCapacityBytes(pageCount)),
        result: take(8),
        updateBases: false,
      });
    }
    this.#jobs = jobs;
    this.#kernels.ensure(next);
    const memory = this.#kernels.bytes();
    // Touched, as a worker's scratch memory is after its first checkpoint.
    memory.fill(1, ALIGN);
    memory.set(after, this.#newAt);
    this.restoreBases();
    jobs.forEach((job, i) => {
      const bases = new Uint32Array(memory.buffer, job.bases, job.pageCount);
      for (let k = 0; k < job.pageCount; k++)
        bases[k] = this.#baseAt + (i * ENCODE_BATCH_PAGES + k) * PAGE_SIZE_BYTES;
    });
  }

  encode(): void {
    this.#totals = this.#jobs.map((job) => this.#kernels.encodePages(job));
  }

  /** Brings the bases to the new contents, from what `encode` made. */
  decode(): void {
    this.#jobs.forEach((job, i) => {
      const { codecs, controlLengths, dataLengths, bases, control, data } = job;
      const { controlBytes, dataBytes } = this.#totals[i]!;
      const { result } = this.#kernels.decodePages({
        count: job.pageCount,
        codecs,
        controlLengths,
        dataLengths,
        pages: bases,
        control,
        controlBytes,
        data,
        dataBytes,
      });
      if (result !== 0) throw new Error(`a record does not decode: ${result}`);
    });
  }

  restoreBases(): void {
    this.#kernels.bytes().set(this.#pristine, this.#baseAt);
  }

  /** @throws when the bases are not `after` */
  check(after: Uint8Array): void {
    const bases = this.#kernels.bytes().subarray(this.#baseAt, this.#baseAt + after.length);
    if (Buffer.compare(bases, after) !== 0) throw new Error('decoded pages differ');
  }
}
