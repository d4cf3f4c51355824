/**
 * The owner of a share of a VM's pages: copies them from the guest, keeps their previous versions, encodes
 * them.
 *
 * Everything happens in one linear memory, so that a page is copied once: process memory -> captured area,
 * and from there the encoder reads it. Not safe for use by two callers at once: operations run one after the
 * other.
 */

import type { GuestReader, GuestReaderModule } from '../hypervisor/guest-reader.js';
import { BASE_NONE, BASE_ZERO_PAGE, type Kernels } from '../kernels/kernels.js';
import { createWasmKernels } from '../kernels/wasm.js';
import { MAX_LEVEL } from '../ffi/zstd.js';
import { encodeFrame, FRAME_PAYLOAD_BYTES, type EncodedFrame } from '../format/frame.js';
import { encodePatchFrame } from '../format/patch-frame.js';
import { MAX_DELTA_DEPTH } from '../format/record-ref.js';
import { CODEC_RAW, CODEC_RUNS, CODEC_SAME, CODEC_ZERO } from '../kernels/codec-ids.js';
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
import { planPatches, type PatchCandidate, type PatchGroup, type PreviousPage } from './patch-plan.js';

/** In `baseRefs`: the committed content is the zero page, which no record holds. */
const ZERO_PAGE_REF = 0;

/**
 * From this many bytes of runs on, a page is patched instead. Of 256, 512, 1024 and 2048 on the first epochs
 * of six recorded workloads, 1024 stored least on compile, 512 on sqlite; they differ by 3 % and less
 * elsewhere.
 */
const DENSE_PAGE_BYTES = 1024;
/** One page alone is not worth a frame. */
const FEWEST_PATCHES = 2;
/**
 * Above the level of other frames. On the first epochs of recorded workloads patches got 2 % (sequential) to
 * 6 % (compile, web) smaller than at level 3, for up to twice the time; those of a memory stressor got 6 %
 * larger.
 */
const PATCH_LEVELS = 3;

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

  missing({ from, to, baseRefs, whole, older }: MissingRequest): MissingReply {
    const positions: number[] = [];
    for (let i = from; i < to; i++) {
      const wantsBase = baseRefs[i - from] !== ZERO_PAGE_REF && whole[i - from] === 0;
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
      if (baseRefs[i] === ZERO_PAGE_REF || whole[i] === 1) return;
      const kept = older[i] === 1 ? undefined : this.#cache.find(page);
      pointers[i] = kept ?? providedAt;
      if (kept === undefined) providedAt += PAGE_SIZE_BYTES;
    });
  }

  /** Cuts the encoder's streams into frames, and those pages out of them that are patched. */
  #cutFrames(pages: Uint32Array, newPages: number, request: EncodeRequest): EncodeReply {
    const { baseRefs, depths, older } = request;
    const bytes = this.#kernels.bytes();
    const arena = this.#arena;
    const codecs = bytes.slice(arena.codecs, arena.codecs + pages.length);
    const controlLengths = new Uint16Array(bytes.buffer, arena.controlLengths, pages.length);
    const dataLengths = new Uint16Array(bytes.buffer, arena.dataLengths, pages.length);
    const groups = this.#patchGroups(codecs, newPages, request);
    const isPatched = new Uint8Array(pages.length);
    for (const { members } of groups) for (const i of members) isPatched[i] = 1;
    const frames: EncodedFrame[] = [];
    const zeroPages: number[] = [];
    const reverted: number[] = [];
    let samePageCount = 0;
    let changedBytes = 0;
    let members: number[] = [];
    let controlFrom = arena.control;
    let dataFrom = arena.data;
    let controlTo = controlFrom;
    let dataTo = dataFrom;
    // Where the encoder put the next record: behind what has been cut out.
    let controlAt = controlFrom;
    let dataAt = dataFrom;
    const flush = (): void => {
      if (members.length === 0) return;
      const records = {
        pages: Uint32Array.from(members, (i) => pages[i]!),
        codecs: Uint8Array.from(members, (i) => codecs[i]!),
        controlLengths: Uint16Array.from(members, (i) => controlLengths[i]!),
        dataLengths: Uint16Array.from(members, (i) => dataLengths[i]!),
        baseRefs: Float64Array.from(members, (i) => (codecs[i] === CODEC_RUNS ? baseRefs[i]! : 0)),
        depths: Uint8Array.from(members, (i) =>
          codecs[i] === CODEC_RUNS && baseRefs[i] !== ZERO_PAGE_REF ? depths[i]! + 1 : 0,
        ),
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
      if (codec === CODEC_SAME) {
        if (older[i] === 1) reverted.push(i);
        else samePageCount++;
      }
      if (codec === CODEC_ZERO) zeroPages.push(pages[i]!);
      if (codec !== CODEC_RAW && codec !== CODEC_RUNS) continue;
      const control = controlLengths[i]!;
      const data = dataLengths[i]!;
      changedBytes += data;
      if (isPatched[i] === 0) {
        members.push(i);
        if (dataAt !== dataTo) {
          bytes.copyWithin(controlTo, controlAt, controlAt + control);
          bytes.copyWithin(dataTo, dataAt, dataAt + data);
        }
        controlTo += control;
        dataTo += data;
      }
      controlAt += control;
      dataAt += data;
      if (controlTo - controlFrom + (dataTo - dataFrom) >= FRAME_PAYLOAD_BYTES) flush();
    }
    flush();
    for (const group of groups) frames.push(this.#patch(group, pages, newPages, request));
    return {
      frames,
      zeroPages: Uint32Array.from(zeroPages),
      reverted: Uint32Array.from(reverted),
      samePageCount,
      changedBytes,
    };
  }

  /**
   * Pages that are better patched than stored as runs or whole. Not without previous versions, as in a first
   * checkpoint.
   */
  #patchGroups(
    codecs: Uint8Array,
    newPages: number,
    { baseRefs, depths, whole }: EncodeRequest,
  ): readonly PatchGroup[] {
    if (this.#level === 0) return [];
    const memory = this.#kernels.bytes();
    const count = codecs.length;
    const bases = new Uint32Array(memory.buffer, this.#arena.bases, count);
    const controlLengths = new Uint16Array(memory.buffer, this.#arena.controlLengths, count);
    const dataLengths = new Uint16Array(memory.buffer, this.#arena.dataLengths, count);
    const candidates: PatchCandidate[] = [];
    const previous: PreviousPage[] = [];
    codecs.forEach((codec, position) => {
      const isChanged = codec === CODEC_RAW || codec === CODEC_RUNS;
      if (
        isChanged &&
        whole[position] === 0 &&
        controlLengths[position]! + dataLengths[position]! >= DENSE_PAGE_BYTES
      ) {
        const content = newPages + position * PAGE_SIZE_BYTES;
        candidates.push({ position, content, hasRuns: codec === CODEC_RUNS });
      }
      const base = bases[position]!;
      const isUsable = baseRefs[position] !== ZERO_PAGE_REF && depths[position]! < MAX_DELTA_DEPTH;
      if (codec !== CODEC_SAME && base > BASE_ZERO_PAGE && isUsable)
        previous.push({ position, content: base });
    });
    if (candidates.length < FEWEST_PATCHES || previous.length === 0) return [];
    return planPatches((content) => this.#anchorsOf(content), candidates, previous);
  }

  #anchorsOf(content: number): Int32Array {
    const { anchors } = this.#arena;
    const count = this.#kernels.findAnchors(content, anchors);
    return new Int32Array(this.#kernels.bytes().buffer, anchors, count);
  }

  #patch(
    { members, sources }: PatchGroup,
    pages: Uint32Array,
    newPages: number,
    { baseRefs, depths }: EncodeRequest,
  ): EncodedFrame {
    const memory = this.#kernels.bytes();
    const bases = new Uint32Array(memory.buffer, this.#arena.bases, pages.length);
    const inOrder = [...sources].sort((a, b) => baseRefs[a]! - baseRefs[b]!);
    const gathered = (pointers: readonly number[]): Uint8Array => {
      const into = new Uint8Array(pointers.length * PAGE_SIZE_BYTES);
      pointers.forEach((at, i) => into.set(memory.subarray(at, at + PAGE_SIZE_BYTES), i * PAGE_SIZE_BYTES));
      return into;
    };
    return encodePatchFrame(
      {
        pages: Uint32Array.from(members, (i) => pages[i]!),
        contents: gathered(members.map((i) => newPages + i * PAGE_SIZE_BYTES)),
        sources: Float64Array.from(inOrder, (i) => baseRefs[i]!),
        prefix: gathered(inOrder.map((i) => bases[i]!)),
        depth: inOrder.reduce((most, i) => Math.max(most, depths[i]! + 1), 0),
        digest: this.#digest(members, newPages),
      },
      Math.min(this.#level + PATCH_LEVELS, MAX_LEVEL),
    );
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
