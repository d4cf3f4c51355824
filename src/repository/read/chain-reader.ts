/**
 * Makes pages from their records: finds the whole page at the bottom of each chain of deltas and applies the deltas to it,
 * and unpacks patches against the pages that they were held against. However scattered the records are, a read decodes each
 * frame once (`planned-read.ts`); what is read together is therefore cheaper than what is read piece by piece.
 *
 *     refs, any order --> sorted by place --> parts, so large as memory allows --> PlannedRead --> pages, in any order
 */

import type { Kernels } from '../../kernels/kernels.js';
import { sharedKernels } from '../../kernels/shared-kernels.js';
import { Scratch } from '../../host/scratch.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import { ChainKeys, ownerTag } from '../../format/chain-keys.js';
import { damaged } from '../../records/damage.js';
import { decodeBlobFrame } from '../../format/frame.js';
import { frameOfRef, MAX_DELTA_DEPTH, packOfRef, recordOfRef, ZERO_REF } from '../../format/record-ref.js';
import { FrameSource } from './frame-source.js';
import { PackReader } from './pack-reader.js';
import type { PageSink } from './page-builder.js';
import { PlannedRead, type PlannedReadDeps } from './planned-read.js';
import type { ReadEffort } from './read-effort.js';

export interface ChainReaderOptions {
  /**
   * Budget for decoded frames, and a quarter of it for packs. Default 64 MiB: some 400 frames, more than a
   * chain's checkpoints times its shares.
   */
  readonly cacheBytes?: number;
  /** Kernels whose memory is free for scratch during each synchronous step. */
  readonly kernels?: Kernels;
  /**
   * Budget in bytes for the pages that patch frames of one read are held against. Reads that need more are made in parts,
   * which decode some frames again. Default 160 MiB.
   */
  readonly sourceBytes?: number;
  /**
   * Give zero pages for records that were blanked because nobody needed them, instead of failing. Default
   * false.
   */
  readonly givesBlank?: boolean;
}

const DEFAULT_READER_CACHE_BYTES = 64 * 1024 * 1024;
const DEFAULT_SOURCE_BYTES = 160 * 1024 * 1024;
/** One page alone may lead to so many times as many sources, before its patch frames are unpacked one within the other. */
const SOURCES_OF_ONE = 4;
/** Pages of one plan, 512 MiB: it takes some hundred bytes for each of them, and what the deltas take. */
const PLANNED_PAGES = 131_072;

/** What lies at the bottom of each page's deltas: one entry a page in each array. */
export interface Bottoms {
  /** The record that is whole, or a delta on the zero page; ZERO_REF for the zero page. */
  readonly refs: Float64Array;
  /** How many deltas lie on it. */
  readonly deltas: Uint8Array;
}

export class ChainReader {
  readonly packs: PackReader;
  readonly #keys: ChainKeys;
  readonly #deps: PlannedReadDeps;

  constructor(
    backend: StorageBackend,
    repositoryId: string,
    chain: string,
    options: ChainReaderOptions = {},
  ) {
    this.#keys = new ChainKeys(chain);
    const cacheBytes = options.cacheBytes ?? DEFAULT_READER_CACHE_BYTES;
    this.packs = new PackReader(backend, this.#keys, ownerTag(repositoryId, chain), cacheBytes / 4);
    this.#deps = {
      frames: new FrameSource(this.packs, cacheBytes),
      scratch: new Scratch(),
      kernels: () => options.kernels ?? sharedKernels(),
      givesBlank: options.givesBlank ?? false,
      mostSources: Math.floor((options.sourceBytes ?? DEFAULT_SOURCE_BYTES) / PAGE_SIZE_BYTES),
      damagedRecord: (ref, what) => {
        const where = { frame: frameOfRef(ref), record: recordOfRef(ref) };
        return damaged(this.#keys.pack(packOfRef(ref)), what, where);
      },
      damagedFrame: (pack, frame, what) => damaged(this.#keys.pack(pack), what, { frame }),
    };
  }

  /**
   * The contents of records, in the order of `refs`, which may repeat and be in any order; 0 = zero page.
   * @param into 4096 bytes a ref
   * @throws REPO_DAMAGED naming pack and frame, REPO_VERSION, INTERRUPTED, and what the backend throws; then
   *   `into` is unspecified
   */
  async readPagesByRef(refs: Float64Array, into: Uint8Array, options: CallOptions = {}): Promise<void> {
    await this.#readInto(refs, into, MAX_DELTA_DEPTH, options);
  }

  /**
   * Reads as `readPagesByRef` does, and hands the pages out as they come: each once, in any order. `sink` is called with the
   * place of the page in `refs`; zero pages are left out.
   */
  async readEach(refs: Float64Array, sink: PageSink, options: CallOptions = {}): Promise<void> {
    await finished(this.readEachInSteps(refs, sink, options));
  }

  /** Reads as `readEach` does, a step at a time; between two steps `sink` is not called. */
  readEachInSteps(refs: Float64Array, sink: PageSink, options: CallOptions = {}): AsyncGenerator<void> {
    return this.#read(refs, sink, MAX_DELTA_DEPTH, options);
  }

  /**
   * Reads as `readPagesByRef` does, but only the record at the bottom of each chain of deltas, which is whole
   * or on the zero page. With it, a page at the greatest depth is stored as differences once more, and at
   * depth 1.
   * @returns the bottom of each ref, and how many deltas lie on it
   */
  readBottoms(refs: Float64Array, into: Uint8Array, options: CallOptions = {}): Promise<Bottoms> {
    return this.#readBottoms(refs, undefined, into, options);
  }

  /**
   * Reads as `readPagesByRef` does, and in the same pass what lies at the bottom of each page's deltas (see
   * `readBottoms`).
   * @param bottomsInto 4096 bytes a ref
   */
  readWithBottoms(
    refs: Float64Array,
    into: Uint8Array,
    bottomsInto: Uint8Array,
    options: CallOptions = {},
  ): Promise<Bottoms> {
    return this.#readBottoms(refs, into, bottomsInto, options);
  }

  /** So far, of all reads together. */
  get effort(): ReadEffort {
    return this.packs.effort;
  }

  /** A blob frame, such as the device state. Caller owns the bytes. @throws as `readPagesByRef` */
  async readBlob(packSeq: number, frame: number, options: CallOptions = {}): Promise<Uint8Array> {
    for await (const stored of this.packs.frames(packSeq, [frame], options)) {
      return decodeBlobFrame(stored.bytes, stored);
    }
    throw damaged(this.#keys.pack(packSeq), 'frame is missing', { frame });
  }

  async #readBottoms(
    refs: Float64Array,
    into: Uint8Array | undefined,
    bottomsInto: Uint8Array,
    options: CallOptions,
  ): Promise<Bottoms> {
    const bottoms = { refs: new Float64Array(refs.length), deltas: new Uint8Array(refs.length) };
    const sink: PageSink = {
      page: into === undefined ? () => undefined : (slot, page) => into.set(page, slot * PAGE_SIZE_BYTES),
      bottom: (slot, ref, deltas, page) => {
        bottoms.refs[slot] = ref;
        bottoms.deltas[slot] = deltas;
        bottomsInto.set(page, slot * PAGE_SIZE_BYTES);
      },
    };
    for (const buffer of [into, bottomsInto]) if (buffer !== undefined) clearZeroPages(refs, buffer);
    await finished(this.#read(refs, sink, MAX_DELTA_DEPTH, options));
    return bottoms;
  }

  /** @param nesting patch frames that may still be met one below the other, in reads that are part of another */
  async #readInto(
    refs: Float64Array,
    into: Uint8Array,
    nesting: number,
    options: CallOptions,
  ): Promise<void> {
    if (into.length !== refs.length * PAGE_SIZE_BYTES) {
      throw new RangeError(`${refs.length} pages do not fit ${into.length} bytes`);
    }
    clearZeroPages(refs, into);
    const sink: PageSink = { page: (slot, page) => into.set(page, slot * PAGE_SIZE_BYTES) };
    await finished(this.#read(refs, sink, nesting, options));
  }

  async *#read(
    refs: Float64Array,
    sink: PageSink,
    nesting: number,
    options: CallOptions,
  ): AsyncGenerator<void> {
    const slots = slotsInOrder(refs);
    for (let from = 0; from < slots.length; from += PLANNED_PAGES)
      yield* this.#readPart(refs, slots.subarray(from, from + PLANNED_PAGES), sink, nesting, options);
  }

  /** @param slots the part of `refs` to be read, in the order of the records */
  async *#readPart(
    refs: Float64Array,
    slots: Uint32Array,
    sink: PageSink,
    nesting: number,
    options: CallOptions,
    readSources?: PlannedReadDeps['readSources'],
  ): AsyncGenerator<void> {
    const wanted = Float64Array.from(slots, (slot) => refs[slot]!);
    const { bottom } = sink;
    const placed: PageSink = {
      page: (i, page) => sink.page(slots[i]!, page),
      bottom: bottom && ((i, ref, deltas, page) => bottom(slots[i]!, ref, deltas, page)),
    };
    const mostSources = this.#deps.mostSources * (slots.length === 1 ? SOURCES_OF_ONE : 1);
    const read = new PlannedRead(wanted, placed, { ...this.#deps, mostSources, readSources });
    const left = Uint32Array.from(yield* read.run(options), (i) => slots[i]!);
    if (left.length > 1) {
      const half = left.length >>> 1;
      yield* this.#readPart(refs, left.subarray(0, half), sink, nesting, options);
      yield* this.#readPart(refs, left.subarray(half), sink, nesting, options);
    } else if (left.length === 1 && slots.length > 1) {
      yield* this.#readPart(refs, left, sink, nesting, options);
    } else if (left.length === 1) {
      // Slow, since frames are decoded again and again, but in little memory.
      yield* this.#readPart(refs, left, sink, nesting, options, async (sources, into) => {
        if (nesting === 0) {
          const what = `more than ${MAX_DELTA_DEPTH} patch frames lead to this record`;
          throw this.#deps.damagedRecord(refs[left[0]!]!, what);
        }
        await this.#readInto(sources, into, nesting - 1, options);
      });
    }
  }
}

/** Slots of the refs that are not zero pages, in the order of the records. */
function slotsInOrder(refs: Float64Array): Uint32Array {
  const slots = new Uint32Array(refs.reduce((count, ref) => count + (ref === ZERO_REF ? 0 : 1), 0));
  let at = 0;
  let isInOrder = true;
  for (let slot = 0; slot < refs.length; slot++) {
    if (refs[slot] === ZERO_REF) continue;
    // A base is written in the order of its pages, and there may be a million of them.
    isInOrder &&= at === 0 || refs[slots[at - 1]!]! <= refs[slot]!;
    slots[at++] = slot;
  }
  return isInOrder ? slots : slots.sort((a, b) => refs[a]! - refs[b]!);
}

function clearZeroPages(refs: Float64Array, into: Uint8Array): void {
  for (const [slot, ref] of refs.entries())
    if (ref === ZERO_REF) into.fill(0, slot * PAGE_SIZE_BYTES, (slot + 1) * PAGE_SIZE_BYTES);
}

async function finished(steps: AsyncGenerator<void>): Promise<void> {
  let step = await steps.next();
  while (step.done !== true) step = await steps.next();
}
