/**
 * The owner of a share of a VM's pages: copies them from the guest, keeps their previous versions, encodes
 * them.
 *
 * Everything happens in one linear memory, so that a page is copied once: process memory -> captured area,
 * and from there the encoder reads it. Not safe for use by two callers at once: operations run one after the
 * other.
 */

import { CheckpointError } from '../errors.js';
import type { GuestReader, GuestReaderDescription, GuestReaderModule } from '../hypervisor/guest-reader.js';
import { BASE_NONE, type Kernels } from '../kernels/kernels.js';
import { createWasmKernels } from '../kernels/wasm.js';
import { ZERO_REF } from '../format/record-ref.js';
import { PAGE_SIZE_BYTES, countRunPages, expandRuns, type PageRuns } from '../types.js';
import { layOutArena, type Arena } from './arena.js';
import { FrameCutter } from './frame-cutter.js';
import {
  ENCODE_BATCH_PAGES,
  type CaptureReply,
  type EncodeReply,
  type EncodeRequest,
  type MissingReply,
  type MissingRequest,
  type ReserveRequest,
  type SealReply,
  type ShareSettings,
} from './messages.js';
import { PageCache } from './page-cache.js';

export class PageShare {
  readonly #reader: GuestReader;
  readonly #kernels: Kernels;
  readonly #arena: Arena;
  readonly #cache: PageCache;
  readonly #cutter: FrameCutter;
  /** Captured runs in the order of capture; their pages lie one after the other in the captured area. */
  #captures: PageRuns[] = [];
  #capturedCount = 0;
  /** After `seal`: the pages, and for each the slot of its last copy. */
  #pages: Uint32Array = new Uint32Array(0);
  #slots: Uint32Array = new Uint32Array(0);

  private constructor(settings: ShareSettings, reader: GuestReader, kernels: Kernels) {
    this.#reader = reader;
    this.#kernels = kernels;
    this.#arena = layOutArena(settings.cacheBytes);
    this.#kernels.ensure(this.#arena.captured);
    this.#cache = new PageCache(this.#arena.cache, this.#arena.cachePages);
    this.#cutter = new FrameCutter(kernels, this.#arena, settings.level);
  }

  static async open(reader: GuestReaderDescription, settings: ShareSettings): Promise<PageShare> {
    const module = (await import(reader.moduleUrl)) as GuestReaderModule;
    return new PageShare(settings, module.openGuestReader(reader.options), createWasmKernels());
  }

  /** @throws CAPTURE_FULL */
  reserve({ room, touch }: ReserveRequest): void {
    try {
      this.#roomFor(Math.max(room, touch));
    } catch (cause) {
      throw new CheckpointError('CAPTURE_FULL', `no memory for ${room} pages that are copied in the pause`, {
        cause,
        hint: 'a worker has room for less than 4 GiB: use more --workers, or a dirty tracker',
      });
    }
    const from = this.#arena.captured + this.#capturedCount * PAGE_SIZE_BYTES;
    this.#kernels.bytes().fill(0, from, from + touch * PAGE_SIZE_BYTES);
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

  missing({ from, to, baseRefs, whole, older }: MissingRequest): MissingReply {
    const positions: number[] = [];
    for (let i = from; i < to; i++) {
      const wantsBase = baseRefs[i - from] !== ZERO_REF && whole[i - from] === 0;
      const isKept = older[i - from] === 0 && this.#cache.find(this.#pages[i]!) !== undefined;
      if (wantsBase && !isKept) positions.push(i - from);
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
      // Patches still need them.
      updateBases: false,
    });
    const reply = this.#cutter.cut({ pages, newPages, request });
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

  /**
   * Where the new contents of [from, to) lie one after the other; gathers them when later copies replaced
   * some.
   */
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
  #placeBases({ baseRefs, whole, older, provided }: EncodeRequest, pages: Uint32Array): void {
    const bytes = this.#kernels.bytes();
    bytes.set(provided, this.#arena.provided);
    const pointers = new Uint32Array(bytes.buffer, this.#arena.bases, pages.length);
    let providedAt = this.#arena.provided;
    pages.forEach((page, i) => {
      pointers[i] = BASE_NONE;
      if (baseRefs[i] === ZERO_REF || whole[i] === 1) return;
      const kept = older[i] === 1 ? undefined : this.#cache.find(page);
      pointers[i] = kept ?? providedAt;
      if (kept === undefined) providedAt += PAGE_SIZE_BYTES;
    });
  }

  /** Keeps the new contents as previous versions. */
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
