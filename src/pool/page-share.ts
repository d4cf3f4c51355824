/**
 * The owner of a share of a VM's pages: copies them from the guest, keeps their previous versions, encodes them.
 *
 * Everything happens in one linear memory, so that a page is copied once: process memory -> captured area, and from there
 * the encoder reads it. Not safe for use by two callers at once: operations run one after the other.
 */

import type { GuestReader, GuestReaderModule } from '../hypervisor/guest-reader.js';
import { BASE_NONE, type Kernels } from '../kernels/kernels.js';
import { createWasmKernels } from '../kernels/wasm.js';
import { encodeFrame, FRAME_PAYLOAD_BYTES, type EncodedFrame } from '../repository/frame.js';
import { CODEC_RAW, CODEC_RUNS, CODEC_SAME, CODEC_ZERO } from '../codec/codec-ids.js';
import { PAGE_SIZE_BYTES, countRunPages, expandRuns, type PageRuns } from '../types.js';
import { layOutArena, type Arena } from './arena.js';
import {
  ENCODE_BATCH_PAGES,
  type CaptureReply,
  type EncodeReply,
  type EncodeRequest,
  type MissingReply,
  type MissingRequest,
  type SealReply,
  type ShareSettings,
} from './messages.js';
import { PageCache } from './page-cache.js';

/** In `baseRefs`: the committed content is the zero page, which no record holds. */
const ZERO_PAGE_REF = 0;

export class PageShare {
  readonly #reader: GuestReader;
  readonly #kernels: Kernels;
  readonly #arena: Arena;
  readonly #cache: PageCache;
  readonly #level: number;
  /** Captured runs in the order of capture; their pages lie one after the other in the captured area. */
  #captures: PageRuns[] = [];
  #capturedCount = 0;
  /** After `seal`: the pages, and for each the slot of its last copy. */
  #pages: Uint32Array = new Uint32Array(0);
  #slots: Uint32Array = new Uint32Array(0);

  private constructor(settings: ShareSettings, reader: GuestReader, kernels: Kernels) {
    this.#reader = reader;
    this.#kernels = kernels;
    this.#level = settings.level;
    this.#arena = layOutArena(settings.cacheBytes);
    this.#kernels.ensure(this.#arena.captured);
    this.#cache = new PageCache(this.#arena.cache, this.#arena.cachePages);
  }

  static async open(settings: ShareSettings): Promise<PageShare> {
    const module = (await import(settings.reader.moduleUrl)) as GuestReaderModule;
    return new PageShare(settings, module.openGuestReader(settings.reader.options), createWasmKernels());
  }

  reserve(pageCount: number): void {
    const end = this.#roomFor(pageCount);
    this.#kernels.bytes().fill(0, this.#arena.captured + this.#capturedCount * PAGE_SIZE_BYTES, end);
  }

  capture(runs: PageRuns): CaptureReply {
    const capturedPages = countRunPages(runs);
    const end = this.#roomFor(capturedPages);
    const start = this.#arena.captured + this.#capturedCount * PAGE_SIZE_BYTES;
    this.#reader.readRuns(runs, this.#kernels.bytes().subarray(start, end));
    this.#captures.push(runs);
    this.#capturedCount += capturedPages;
    return { capturedPages };
  }

  seal(): SealReply {
    if (this.#captures.length === 1) {
      this.#pages = expandRuns(this.#captures[0]!);
      this.#slots = Uint32Array.from(this.#pages, (_, i) => i);
    } else {
      const slotOf = new Map<number, number>();
      let slot = 0;
      for (const runs of this.#captures) for (const page of expandRuns(runs)) slotOf.set(page, slot++);
      this.#pages = Uint32Array.from(slotOf.keys()).sort();
      this.#slots = this.#pages.map((page) => slotOf.get(page)!);
    }
    return { pages: this.#pages };
  }

  missing({ from, to, baseRefs, whole }: MissingRequest): MissingReply {
    const positions: number[] = [];
    for (let i = from; i < to; i++) {
      const wantsBase = baseRefs[i - from] !== ZERO_PAGE_REF && whole[i - from] === 0;
      if (wantsBase && this.#cache.find(this.#pages[i]!) === undefined) positions.push(i - from);
    }
    return { positions: Uint32Array.from(positions) };
  }

  encode(request: EncodeRequest): EncodeReply {
    const { from, to } = request;
    const count = to - from;
    if (count > ENCODE_BATCH_PAGES)
      throw new RangeError(`encode of ${count} pages, at most ${ENCODE_BATCH_PAGES}`);
    const pages = this.#pages.subarray(from, to);
    const newPages = this.#contiguous(from, to);
    this.#placeBases(request, pages);
    const arena = this.#arena;
    this.#kernels.encodePages({
      pageCount: count,
      newPages,
      bases: arena.bases,
      codecs: arena.codecs,
      controlLengths: arena.controlLengths,
      dataLengths: arena.dataLengths,
      control: arena.control,
      data: arena.data,
      result: arena.result,
      // Kept versions that served as bases are brought up to date where they differ, while both are in the cache.
      updateBases: true,
    });
    const reply = this.#cutFrames(pages, newPages, request);
    this.#keep(pages, newPages, request.admit);
    return reply;
  }

  reset(): void {
    this.#captures = [];
    this.#capturedCount = 0;
    this.#pages = new Uint32Array(0);
    this.#slots = new Uint32Array(0);
  }

  forget(): void {
    this.reset();
    this.#cache.clear();
  }

  close(): void {
    this.#reader.close();
  }

  /** Grows the captured area by `pageCount` pages. @returns its end as a byte offset */
  #roomFor(pageCount: number): number {
    const end = this.#arena.captured + (this.#capturedCount + pageCount) * PAGE_SIZE_BYTES;
    this.#kernels.ensure(end);
    return end;
  }

  /** Where the new contents of [from, to) lie one after the other; gathers them when later copies replaced some. */
  #contiguous(from: number, to: number): number {
    const first = this.#slots[from] ?? 0;
    let inOrder = true;
    for (let i = from; i < to && inOrder; i++) inOrder = this.#slots[i] === first + (i - from);
    if (inOrder) return this.#arena.captured + first * PAGE_SIZE_BYTES;
    const bytes = this.#kernels.bytes();
    for (let i = from; i < to; i++) {
      const source = this.#arena.captured + this.#slots[i]! * PAGE_SIZE_BYTES;
      bytes.copyWithin(this.#arena.gather + (i - from) * PAGE_SIZE_BYTES, source, source + PAGE_SIZE_BYTES);
    }
    return this.#arena.gather;
  }

  /** Base pointers for the encoder: into the cache, into what the request provided, or none. */
  #placeBases({ baseRefs, whole, provided }: EncodeRequest, pages: Uint32Array): void {
    const bytes = this.#kernels.bytes();
    bytes.set(provided, this.#arena.provided);
    const pointers = new Uint32Array(bytes.buffer, this.#arena.bases, pages.length);
    let providedAt = this.#arena.provided;
    pages.forEach((page, i) => {
      pointers[i] = BASE_NONE;
      if (baseRefs[i] === ZERO_PAGE_REF || whole[i] === 1) return;
      const kept = this.#cache.find(page);
      pointers[i] = kept ?? providedAt;
      if (kept === undefined) providedAt += PAGE_SIZE_BYTES;
    });
  }

  /** Cuts the encoder's streams into frames. Records of one frame are neighbours in the streams: zero and same pages take nothing. */
  #cutFrames(pages: Uint32Array, newPages: number, { baseRefs }: EncodeRequest): EncodeReply {
    const bytes = this.#kernels.bytes();
    const arena = this.#arena;
    const codecs = bytes.slice(arena.codecs, arena.codecs + pages.length);
    const controlLengths = new Uint16Array(bytes.buffer, arena.controlLengths, pages.length);
    const dataLengths = new Uint16Array(bytes.buffer, arena.dataLengths, pages.length);
    const frames: EncodedFrame[] = [];
    const zeroPages: number[] = [];
    let samePageCount = 0;
    let changedBytes = 0;
    let members: number[] = [];
    let controlFrom = arena.control;
    let dataFrom = arena.data;
    let controlTo = controlFrom;
    let dataTo = dataFrom;
    const flush = (): void => {
      if (members.length === 0) return;
      const records = {
        pages: Uint32Array.from(members, (i) => pages[i]!),
        codecs: Uint8Array.from(members, (i) => codecs[i]!),
        controlLengths: Uint16Array.from(members, (i) => controlLengths[i]!),
        dataLengths: Uint16Array.from(members, (i) => dataLengths[i]!),
        baseRefs: Float64Array.from(members, (i) => (codecs[i] === CODEC_RUNS ? baseRefs[i]! : 0)),
        control: bytes.subarray(controlFrom, controlTo),
        data: bytes.subarray(dataFrom, dataTo),
        digest: this.#digest(members, newPages),
      };
      frames.push(encodeFrame(records, this.#level));
      members = [];
      controlFrom = controlTo;
      dataFrom = dataTo;
    };
    for (let i = 0; i < pages.length; i++) {
      const codec = codecs[i]!;
      if (codec === CODEC_SAME) samePageCount++;
      if (codec === CODEC_ZERO) zeroPages.push(pages[i]!);
      if (codec !== CODEC_RAW && codec !== CODEC_RUNS) continue;
      members.push(i);
      controlTo += controlLengths[i]!;
      dataTo += dataLengths[i]!;
      changedBytes += dataLengths[i]!;
      if (controlTo - controlFrom + (dataTo - dataFrom) >= FRAME_PAYLOAD_BYTES) flush();
    }
    flush();
    return { frames, zeroPages: Uint32Array.from(zeroPages), samePageCount, changedBytes };
  }

  /** Digest of the pages a frame decodes to (docs/format.md, frame digest). */
  #digest(members: readonly number[], newPages: number): bigint {
    const hashes = new DataView(this.#kernels.bytes().buffer, this.#arena.hashes, members.length * 8);
    members.forEach((member, i) => {
      hashes.setBigUint64(
        i * 8,
        this.#kernels.hash64(newPages + member * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES, 0n),
        true,
      );
    });
    return this.#kernels.hash64(this.#arena.hashes, members.length * 8, 0n);
  }

  /**
   * Keeps the new contents as previous versions. The encoder has already updated those it used as bases; a page that was
   * kept but stored whole must be brought up to date here.
   */
  #keep(pages: Uint32Array, newPages: number, admit: boolean): void {
    const bytes = this.#kernels.bytes();
    pages.forEach((page, i) => {
      const kept = admit ? this.#cache.admit(page) : this.#cache.find(page);
      if (kept === undefined) return;
      const source = newPages + i * PAGE_SIZE_BYTES;
      bytes.copyWithin(kept, source, source + PAGE_SIZE_BYTES);
    });
  }
}
