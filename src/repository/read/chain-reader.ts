/**
 * Makes pages from their records: finds the whole page at the bottom of each chain of deltas and applies the
 * deltas to it.
 *
 * Works on windows of pages, level by level: all records asked for, then all their bases, and so on. So a
 * frame is decoded about once a window however scattered its pages are, and memory is bounded by window and
 * cache.
 *
 *              level 1         level 2         level 3          then
 *     slot 0   delta ───base─> delta ───base─> whole page       deltas applied from the oldest: the page
 *     slot 1   whole page                                       nothing to apply
 *     slot 2   delta ───base─> zero page                        the delta applied to 4096 zero bytes
 *     slot 3   patch ──sources─> pages, read in the same way    unpacked with them as prefix
 */

import { CODEC_RAW } from '../../kernels/codec-ids.js';
import type { Kernels } from '../../kernels/kernels.js';
import { sharedKernels } from '../../kernels/shared-kernels.js';
import { Scratch } from '../../host/scratch.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import { isBlankRecord } from '../../format/blank-record.js';
import { ChainKeys, ownerTag } from '../../format/chain-keys.js';
import { damaged } from '../../records/damage.js';
import { DeltaStash } from './delta-stash.js';
import { FrameCache } from './frame-cache.js';
import { decodeBlobFrame, decodeFrameAsync, FRAME_KIND_PATCH, type PageRecords } from '../../format/frame.js';
import { PackReader, type StoredFrame } from './pack-reader.js';
import { readPatch, unpackPatch } from '../../format/patch-frame.js';
import {
  frameKey,
  frameKeyOfRef,
  frameOfRef,
  isRecordRef,
  MAX_DELTA_DEPTH,
  packOfRef,
  recordOfRef,
  ZERO_REF,
  type RecordRef,
} from '../../format/record-ref.js';

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

export const DEFAULT_READER_CACHE_BYTES = 64 * 1024 * 1024;
/**
 * Default of `windowPages`. The deltas may take as much again per level, in the worst case; commonly far
 * less.
 */
export const WINDOW_PAGES = 2048;
/**
 * For whoever reads every record of a chain, as verification does: 32 MiB of pages, so that scattered records
 * decode fewer frames twice.
 */
export const VERIFY_WINDOW_PAGES = 8192;
/**
 * Packs opened before their turn: a page of a long chain has records in many. Each holds a descriptor or two
 * meanwhile.
 */
const OPENS_AHEAD = 8;
/** Frames being decompressed at a time, on libuv's threads. */
const DECODES_IN_FLIGHT = 4;

/** A slot of the window and the record that it needs next. */
interface Wanted {
  readonly slots: Uint32Array;
  readonly refs: Float64Array;
}

export class ChainReader {
  readonly packs: PackReader;
  readonly #keys: ChainKeys;
  readonly #cache: FrameCache;
  readonly #kernels: () => Kernels;
  readonly #windowPages: number;
  readonly #scratch = new Scratch();
  readonly #givesBlank: boolean;

  constructor(
    backend: StorageBackend,
    repositoryId: string,
    chain: string,
    options: ChainReaderOptions = {},
  ) {
    this.#keys = new ChainKeys(chain);
    const cacheBytes = options.cacheBytes ?? DEFAULT_READER_CACHE_BYTES;
    this.packs = new PackReader(backend, this.#keys, ownerTag(repositoryId, chain), cacheBytes / 4);
    this.#cache = new FrameCache(cacheBytes);
    this.#windowPages = options.windowPages ?? WINDOW_PAGES;
    this.#givesBlank = options.givesBlank ?? false;
    this.#kernels = () => options.kernels ?? sharedKernels();
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
    await this.#readPages(refs, into, { ...options, patches: MAX_DELTA_DEPTH });
  }

  async #readPages(refs: Float64Array, into: Uint8Array, options: NestedOptions): Promise<void> {
    for (let from = 0; from < refs.length; from += this.#windowPages) {
      const to = Math.min(refs.length, from + this.#windowPages);
      const part = into.subarray(from * PAGE_SIZE_BYTES, to * PAGE_SIZE_BYTES);
      await this.#readWindow(refs.subarray(from, to), part, options);
    }
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

  async #readBottoms(
    refs: Float64Array,
    into: Uint8Array,
    bottomsInto: Uint8Array | undefined,
    options: CallOptions,
  ): Promise<Bottoms> {
    const bottoms = { refs: new Float64Array(refs.length), deltas: new Uint8Array(refs.length) };
    for (let from = 0; from < refs.length; from += this.#windowPages) {
      const to = Math.min(refs.length, from + this.#windowPages);
      const [fromByte, toByte] = [from * PAGE_SIZE_BYTES, to * PAGE_SIZE_BYTES];
      const nested = { ...options, patches: MAX_DELTA_DEPTH };
      await this.#readWindow(refs.subarray(from, to), into.subarray(fromByte, toByte), nested, {
        refs: bottoms.refs.subarray(from, to),
        deltas: bottoms.deltas.subarray(from, to),
        into: bottomsInto?.subarray(fromByte, toByte),
      });
    }
    return bottoms;
  }

  /**
   * Gives one decoded frame, which is shared with the cache: do not change it.
   * @throws as `readPagesByRef`
   */
  async frame(packSeq: number, frame: number, options: CallOptions = {}): Promise<PageRecords> {
    const key = frameKey(packSeq, frame);
    const cached = this.#cache.get(key);
    if (cached !== undefined) return cached;
    const span = { key, pack: packSeq, frame, from: 0, to: 0 };
    const nested = { ...options, patches: MAX_DELTA_DEPTH };
    for await (const [, , records] of this.#fetch([span], nested)) return records;
    throw damaged(this.#keys.pack(packSeq), 'frame is missing', { frame });
  }

  /** A blob frame, such as the device state. Caller owns the bytes. @throws as `readPagesByRef` */
  async readBlob(packSeq: number, frame: number, options: CallOptions = {}): Promise<Uint8Array> {
    for await (const stored of this.packs.frames(packSeq, [frame], options)) {
      return decodeBlobFrame(stored.bytes, stored);
    }
    throw damaged(this.#keys.pack(packSeq), 'frame is missing', { frame });
  }

  /** @param bottoms when given: take them, and leave the deltas out unless they have a place of their own */
  async #readWindow(
    refs: Float64Array,
    into: Uint8Array,
    options: NestedOptions,
    bottoms?: Window['bottoms'],
  ): Promise<void> {
    const window: Window = {
      into,
      deltas: bottoms === undefined || bottoms.into !== undefined ? new DeltaStash() : undefined,
      bottoms,
      bottomDeltas: new DeltaStash(),
    };
    for (let slot = 0; slot < refs.length; slot++) {
      if (refs[slot] === ZERO_REF) into.fill(0, slot * PAGE_SIZE_BYTES, (slot + 1) * PAGE_SIZE_BYTES);
    }
    const wanted = this.#sortByRef(
      refs,
      Uint32Array.from(refs, (_, slot) => slot).filter((slot) => refs[slot] !== ZERO_REF),
    );
    // The slots are parted at the top only: below, the parts would multiply with each patch frame.
    if (options.patches === MAX_DELTA_DEPTH) {
      const settled = await Promise.allSettled(
        splitLargestPack(wanted).map((part) => this.#followDown(part, window, options)),
      );
      for (const one of settled) if (one.status === 'rejected') throw one.reason;
    } else await this.#followDown(wanted, window, options);
    const onMalformed = (ref: RecordRef, reason: string): Error => this.#damagedRecord(ref, reason);
    if (bottoms?.into !== undefined) bottoms.into.set(into);
    window.bottomDeltas.apply(this.#kernels(), bottoms?.into ?? into, onMalformed);
    window.deltas?.apply(this.#kernels(), into, onMalformed);
  }

  /** All records of some slots, then all their bases, and so on down to the whole pages. */
  async #followDown(start: Wanted, window: Window, options: NestedOptions): Promise<void> {
    const { into, deltas, bottoms, bottomDeltas } = window;
    let wanted = start;
    for (let level = 0; wanted.slots.length > 0; level++) {
      if (level > MAX_DELTA_DEPTH) {
        throw this.#damagedRecord(wanted.refs[0]!, `more than ${MAX_DELTA_DEPTH} deltas lead to this record`);
      }
      const nextRefs = new Float64Array(into.length / PAGE_SIZE_BYTES);
      const nextSlots: number[] = [];
      for await (const [from, to, frame] of this.#framesOf(wanted, options)) {
        for (let i = from; i < to; i++) {
          const slot = wanted.slots[i]!;
          const ref = wanted.refs[i]!;
          const base = this.#takeRecord(frame, ref, slot, into, deltas);
          if (base === ZERO_REF) {
            if (bottoms !== undefined) {
              bottoms.refs[slot] = ref;
              bottoms.deltas[slot] = level;
              // A delta on the zero page still has to be applied.
              const record = recordOfRef(ref);
              if (frame.codecs[record] !== CODEC_RAW) bottomDeltas.push(slot, ref, frame, record);
            }
            continue;
          }
          nextRefs[slot] = base;
          nextSlots.push(slot);
        }
      }
      wanted = this.#sortByRef(nextRefs, Uint32Array.from(nextSlots));
    }
  }

  /**
   * Writes a whole page to its slot, or sets a delta aside.
   * @returns the record needed next, 0 when there is none
   */
  #takeRecord(
    frame: PageRecords,
    ref: RecordRef,
    slot: number,
    into: Uint8Array,
    stash: DeltaStash | undefined,
  ): RecordRef {
    const record = recordOfRef(ref);
    if (record >= frame.count) throw this.#damagedRecord(ref, 'the frame has no such record');
    const at = slot * PAGE_SIZE_BYTES;
    if (frame.codecs[record] === CODEC_RAW) {
      into.set(frame.body.subarray(frame.dataOffsets[record], frame.dataOffsets[record + 1]), at);
      return ZERO_REF;
    }
    if (!this.#givesBlank && isBlankRecord(frame, record))
      throw this.#damagedRecord(ref, 'this record was given up, because no checkpoint needed it');
    const base = frame.baseRefs[record]!;
    // Strictly backwards, which also rules out a circle.
    if (base !== ZERO_REF && frameKeyOfRef(base) >= frameKeyOfRef(ref)) {
      throw this.#damagedRecord(ref, 'the base does not lie before the record');
    }
    stash?.push(slot, ref, frame, record);
    if (base === ZERO_REF) into.fill(0, at, at + PAGE_SIZE_BYTES);
    return base;
  }

  /** Each frame that `wanted` (sorted by ref) needs, with the part [from, to) of `wanted` that lies in it. */
  async *#framesOf(
    { refs }: Wanted,
    options: NestedOptions,
  ): AsyncGenerator<readonly [number, number, PageRecords]> {
    const missing: FrameSpan[] = [];
    for (let from = 0; from < refs.length;) {
      const key = frameKeyOfRef(refs[from]!);
      let to = from + 1;
      while (to < refs.length && frameKeyOfRef(refs[to]!) === key) to++;
      const cached = this.#cache.get(key);
      if (cached !== undefined) yield [from, to, cached];
      else missing.push({ key, pack: packOfRef(refs[from]!), frame: frameOfRef(refs[from]!), from, to });
      from = to;
    }
    yield* this.#fetch(missing, options);
  }

  /**
   * Reads and decodes frames, a few of them at the same time, also of different packs.
   * @param spans in ascending order
   */
  async *#fetch(
    spans: readonly FrameSpan[],
    options: NestedOptions,
  ): AsyncGenerator<readonly [number, number, PageRecords]> {
    const inFlight: (() => Promise<PageRecords>)[] = [];
    let done = 0;
    const next = async (): Promise<readonly [number, number, PageRecords]> => {
      const frame = await inFlight.shift()!();
      const span = spans[done++]!;
      this.#cache.put(span.key, frame);
      return [span.from, span.to, frame];
    };
    const byPack = groupByPack(spans);
    for (const [i, some] of byPack.entries()) {
      for (const ahead of byPack.slice(i, i + OPENS_AHEAD)) {
        // The failure is met when the turn of this frame or pack comes, or not at all when another one fails
        // first.
        this.packs.open(ahead[0]!.pack, options).catch(() => undefined);
      }
      const { pack } = some[0]!;
      const numbers = some.map(({ frame }) => frame);
      for await (const stored of this.packs.frames(pack, numbers, options)) {
        const isPatch = stored.entry.kind === FRAME_KIND_PATCH;
        const decode = (): Promise<PageRecords> =>
          isPatch ? this.#decodePatch(pack, stored, options) : decodeFrameAsync(stored.bytes, stored);
        // A patch reads frames of its own, and so on downwards: only the topmost ones at the same time, the
        // others in their turn.
        if (isPatch && options.patches < MAX_DELTA_DEPTH) inFlight.push(decode);
        else {
          const decoding = decode();
          // The failure is met when the turn of this frame or pack comes, or not at all when another one
          // fails first.
          decoding.catch(() => undefined);
          inFlight.push(() => decoding);
        }
        if (inFlight.length === DECODES_IN_FLIGHT) yield await next();
      }
    }
    while (inFlight.length > 0) yield await next();
  }

  /**
   * A patch frame needs the pages it is held against first: reads those, which may lie in patch frames again.
   */
  async #decodePatch(pack: number, stored: StoredFrame, options: NestedOptions): Promise<PageRecords> {
    const patch = readPatch(stored.bytes, pack, stored);
    // A patch frame without sources, at depth 0, may lie below as many as have some.
    if (options.patches === 0 && patch.sources.length > 0) {
      const what = `more than ${MAX_DELTA_DEPTH} patch frames lead to this one`;
      throw damaged(stored.key, what, { frame: stored.frame });
    }
    const prefix = this.#scratch.take(patch.sources.length * PAGE_SIZE_BYTES);
    try {
      await this.#readPages(patch.sources, prefix, { ...options, patches: options.patches - 1 });
      return unpackPatch(patch, prefix, stored);
    } finally {
      this.#scratch.give(prefix);
    }
  }

  #sortByRef(refs: Float64Array, slots: Uint32Array): Wanted {
    for (const slot of slots) {
      if (!isRecordRef(refs[slot]!)) throw new RangeError(`${refs[slot]!} is not a record reference`);
    }
    slots.sort((a, b) => refs[a]! - refs[b]!);
    return { slots, refs: Float64Array.from(slots, (slot) => refs[slot]!) };
  }

  #damagedRecord(ref: RecordRef, what: string): Error {
    const where = { frame: frameOfRef(ref), record: recordOfRef(ref) };
    return damaged(this.#keys.pack(packOfRef(ref)), what, where);
  }
}

/** What lies at the bottom of each ref: one entry a ref in each array. */
export interface Bottoms {
  readonly refs: Float64Array;
  readonly deltas: Uint8Array;
}

/** Pages being read together. */
interface Window {
  readonly into: Uint8Array;
  /** Undefined when only the bottoms are asked for. */
  readonly deltas: DeltaStash | undefined;
  readonly bottoms: (Bottoms & { readonly into: Uint8Array | undefined }) | undefined;
  /** Bottoms that are deltas on the zero page. */
  readonly bottomDeltas: DeltaStash;
}

/** `patches`: patch frames that may still be met on the way down. */
interface NestedOptions extends CallOptions {
  readonly patches: number;
}

interface FrameSpan {
  readonly key: number;
  readonly pack: number;
  readonly frame: number;
  readonly from: number;
  readonly to: number;
}

function groupByPack(spans: readonly FrameSpan[]): readonly (readonly FrameSpan[])[] {
  const groups: FrameSpan[][] = [];
  for (const span of spans) {
    const last = groups.at(-1);
    if (last?.[0]!.pack === span.pack) last.push(span);
    else groups.push([span]);
  }
  return groups;
}

/**
 * The slots whose record lies in the pack that most of them lie in, and the others. Read side by side: one
 * part, commonly the base, is many frames that are read one after the other, and the other a few that lead
 * from one to the next.
 */
function splitLargestPack({ slots, refs }: Wanted): readonly Wanted[] {
  let largest = [0, 0] as readonly [number, number];
  for (let from = 0; from < refs.length;) {
    const pack = packOfRef(refs[from]!);
    let to = from + 1;
    while (to < refs.length && packOfRef(refs[to]!) === pack) to++;
    if (to - from > largest[1] - largest[0]) largest = [from, to];
    from = to;
  }
  const [from, to] = largest;
  if (to - from === refs.length) return [{ slots, refs }];
  const others = [...slots.keys()].filter((i) => i < from || i >= to);
  return [
    {
      slots: Uint32Array.from(others, (i) => slots[i]!),
      refs: Float64Array.from(others, (i) => refs[i]!),
    },
    { slots: slots.subarray(from, to), refs: refs.subarray(from, to) },
  ];
}
