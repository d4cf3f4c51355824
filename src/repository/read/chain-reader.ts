/**
 * Makes pages from their records: finds the whole page at the bottom of each chain of deltas and applies the
 * deltas to it.
 *
 * Works on windows of pages, level by level: all records asked for, then all their bases, and so on. So a
 * frame is decoded about once a window however scattered its pages are, and memory is bounded by window and
 * cache.
 *
 *              level 0         level 1         level 2          then
 *     slot 0   delta ───base─> delta ───base─> whole page       deltas applied from the oldest: the page
 *     slot 1   whole page                                       nothing to apply
 *     slot 2   delta ───base─> zero page                        the delta applied to 4096 zero bytes
 *     slot 3   patch ──sources─> pages, read in the same way    unpacked with them as prefix
 */

import type { Kernels } from '../../kernels/kernels.js';
import { sharedKernels } from '../../kernels/shared-kernels.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import { ChainKeys, ownerTag } from '../../format/chain-keys.js';
import { damaged } from '../../records/damage.js';
import { decodeBlobFrame, type PageRecords } from '../../format/frame.js';
import {
  frameOfRef,
  MAX_DELTA_DEPTH,
  packOfRef,
  recordOfRef,
  ZERO_REF,
  type RecordRef,
} from '../../format/record-ref.js';
import { FrameSource, type NestedOptions } from './frame-source.js';
import { PackReader } from './pack-reader.js';
import { PageWindow, type Bottoms, type BottomsTarget, type PageWindowDeps } from './page-window.js';
import { sortByRef, splitLargestPack, type WantedRecords } from './wanted-records.js';

export interface ChainReaderOptions {
  /**
   * Budget for decoded frames, and a quarter of it for packs. Default 64 MiB: some 400 frames, more than a
   * chain's checkpoints times its shares.
   */
  readonly cacheBytes?: number;
  /** Kernels whose memory is free for scratch during each synchronous step. */
  readonly kernels?: Kernels;
  /**
   * Pages resolved together. More costs memory (5 to 10 KiB each) and saves decoding where pages are
   * scattered.
   */
  readonly windowPages?: number;
  /**
   * Give zero pages for records that were blanked because nobody needed them, instead of failing. Default
   * false.
   */
  readonly givesBlank?: boolean;
}

const DEFAULT_READER_CACHE_BYTES = 64 * 1024 * 1024;
/**
 * Default of `windowPages`. The deltas may take as much again per level, in the worst case; commonly far
 * less.
 */
export const WINDOW_PAGES = 2048;
/**
 * For whoever reads every record of a chain, as verification does: 32 MiB of pages, so that fewer frames are
 * decoded twice.
 */
export const VERIFY_WINDOW_PAGES = 8192;

export class ChainReader {
  readonly packs: PackReader;
  readonly #keys: ChainKeys;
  readonly #frames: FrameSource;
  readonly #kernels: () => Kernels;
  readonly #windowPages: number;
  readonly #windowDeps: PageWindowDeps;

  constructor(
    backend: StorageBackend,
    repositoryId: string,
    chain: string,
    options: ChainReaderOptions = {},
  ) {
    this.#keys = new ChainKeys(chain);
    const cacheBytes = options.cacheBytes ?? DEFAULT_READER_CACHE_BYTES;
    this.packs = new PackReader(backend, this.#keys, ownerTag(repositoryId, chain), cacheBytes / 4);
    this.#frames = new FrameSource({
      packs: this.packs,
      cacheBytes,
      readPages: (refs, into, nested) => this.#readPages(refs, into, undefined, nested),
    });
    this.#windowPages = options.windowPages ?? WINDOW_PAGES;
    this.#kernels = () => options.kernels ?? sharedKernels();
    this.#windowDeps = {
      givesBlank: options.givesBlank ?? false,
      damagedRecord: (ref, what) => this.#damagedRecord(ref, what),
    };
  }

  /**
   * The contents of records, in the order of `refs`, which may repeat and be in any order; 0 = zero page.
   * @param into 4096 bytes a ref
   * @throws REPO_DAMAGED naming pack and frame, REPO_VERSION, INTERRUPTED, and what the backend throws; then
   *   `into` is unspecified
   */
  async readPagesByRef(refs: Float64Array, into: Uint8Array, options: CallOptions = {}): Promise<void> {
    if (into.length !== refs.length * PAGE_SIZE_BYTES) {
      throw new RangeError(`${refs.length} pages do not fit ${into.length} bytes`);
    }
    await this.#readPages(refs, into, undefined, topmost(options));
  }

  /**
   * Reads as `readPagesByRef` does, but only the record at the bottom of each chain of deltas, which is whole
   * or on the zero page. With it, a page at the greatest depth is stored as differences once more, and at
   * depth 1.
   * @returns the bottom of each ref, and how many deltas lie on it
   */
  readBottoms(refs: Float64Array, into: Uint8Array, options: CallOptions = {}): Promise<Bottoms> {
    return this.#readBottoms(refs, into, undefined, options);
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

  /** One decoded frame; shared with the cache, do not change it. @throws as `readPagesByRef` */
  frame(packSeq: number, frame: number, options: CallOptions = {}): Promise<PageRecords> {
    return this.#frames.frame(packSeq, frame, topmost(options));
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
    into: Uint8Array,
    bottomsInto: Uint8Array | undefined,
    options: CallOptions,
  ): Promise<Bottoms> {
    const bottoms = { refs: new Float64Array(refs.length), deltas: new Uint8Array(refs.length) };
    await this.#readPages(refs, into, { ...bottoms, into: bottomsInto }, topmost(options));
    return bottoms;
  }

  /** Window by window. */
  async #readPages(
    refs: Float64Array,
    into: Uint8Array,
    bottoms: BottomsTarget | undefined,
    options: NestedOptions,
  ): Promise<void> {
    for (let from = 0; from < refs.length; from += this.#windowPages) {
      const to = Math.min(refs.length, from + this.#windowPages);
      const [fromByte, toByte] = [from * PAGE_SIZE_BYTES, to * PAGE_SIZE_BYTES];
      const target = bottoms && {
        refs: bottoms.refs.subarray(from, to),
        deltas: bottoms.deltas.subarray(from, to),
        into: bottoms.into?.subarray(fromByte, toByte),
      };
      const window = new PageWindow(into.subarray(fromByte, toByte), target, this.#windowDeps);
      await this.#readWindow(refs.subarray(from, to), window, options);
    }
  }

  async #readWindow(refs: Float64Array, window: PageWindow, options: NestedOptions): Promise<void> {
    const slots = Uint32Array.from(refs, (_, slot) => slot);
    for (const slot of slots) if (refs[slot] === ZERO_REF) window.setZero(slot);
    const wanted = sortByRef(
      refs,
      slots.filter((slot) => refs[slot] !== ZERO_REF),
    );
    // The slots are parted at the top only: below, the parts would multiply with each patch frame.
    if (options.patches === MAX_DELTA_DEPTH) {
      const settled = await Promise.allSettled(
        splitLargestPack(wanted).map((part) => this.#followDown(part, window, options)),
      );
      for (const one of settled) if (one.status === 'rejected') throw one.reason;
    } else await this.#followDown(wanted, window, options);
    window.finish(this.#kernels());
  }

  /** Takes all records of some slots, then all their bases, and so on down to the whole pages. */
  async #followDown(start: WantedRecords, window: PageWindow, options: NestedOptions): Promise<void> {
    let wanted = start;
    for (let level = 0; wanted.slots.length > 0; level++) {
      if (level > MAX_DELTA_DEPTH) {
        throw this.#damagedRecord(wanted.refs[0]!, `more than ${MAX_DELTA_DEPTH} deltas lead to this record`);
      }
      const nextRefs = new Float64Array(window.slotCount);
      const nextSlots: number[] = [];
      for await (const [{ from, to }, frame] of this.#frames.framesOf(wanted, options)) {
        for (let i = from; i < to; i++) {
          const slot = wanted.slots[i]!;
          const base = window.take(slot, wanted.refs[i]!, level, frame);
          if (base === ZERO_REF) continue;
          nextRefs[slot] = base;
          nextSlots.push(slot);
        }
      }
      wanted = sortByRef(nextRefs, Uint32Array.from(nextSlots));
    }
  }

  #damagedRecord(ref: RecordRef, what: string): Error {
    const where = { frame: frameOfRef(ref), record: recordOfRef(ref) };
    return damaged(this.#keys.pack(packOfRef(ref)), what, where);
  }
}

/** Options of a read that is not part of decoding a patch frame. */
function topmost(options: CallOptions): NestedOptions {
  return { ...options, patches: MAX_DELTA_DEPTH };
}
