/**
 * One checkpoint as it is read back: its pages, its device state, and what the manifest says. Hides the
 * parent chain. All reading may end with CHECKPOINT_GONE: the checkpoint was forgotten meanwhile.
 */

import type { CheckpointSource, PageChunk } from '../../hypervisor/restore.js';
import type { MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { DiskSnapshot } from '../../hypervisor/disks.js';
import type { FrozenGuest } from '../../hypervisor/freezer.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import { throwIfInterrupted } from '../../storage/interrupted.js';
import { PAGE_SIZE_BYTES, type JsonObject } from '../../types.js';
import { ChainKeys } from '../../format/chain-keys.js';
import { ChainReader, type ChainReaderOptions } from './chain-reader.js';
import { damaged } from '../../records/damage.js';
import { orGone } from './gone.js';
import type { Manifest } from '../../format/manifest.js';
import { PageBatch } from './page-batch.js';
import { PageIndex, type IndexWindow } from './page-index.js';
import type { ReadEffort } from './read-effort.js';
import { ZERO_REF, type RecordRef } from '../../format/record-ref.js';
import { sha256Hex } from '../../format/sealed-json.js';

/** 1 MiB. */
const MAX_CHUNK_PAGES = 256;
/**
 * Pages that are read together where they are asked for in their order, 32 MiB: each such window decodes the frames that it
 * needs once, and two of them are in memory.
 */
export const WINDOW_PAGES = 8192;
/**
 * Pages whose order is that of the repository, 4 GiB: they take 12 bytes each. A frame that holds pages of
 * several such parts is decoded in each.
 */
const PART_PAGES = 1 << 20;

const NO_BYTES = new Uint8Array(0);

/**
 * Pages of one region, with the bytes of those that have a record, one after the other.
 */
interface Window {
  readonly firstPage: number;
  /** One a page. */
  readonly refs: Float64Array;
  readonly bytes: Uint8Array;
}

export class CheckpointReader implements CheckpointSource {
  readonly checkpointId: string;
  readonly hypervisor: string;
  readonly machine: JsonObject;
  readonly machineType: string;
  readonly layout: MemoryLayout;
  readonly disks: readonly DiskSnapshot[];
  readonly frozen: FrozenGuest | undefined;
  readonly #chain: ChainReader;
  #index: Promise<PageIndex> | undefined;

  constructor(
    private readonly backend: StorageBackend,
    private readonly repositoryId: string,
    readonly manifest: Manifest,
    options: ChainReaderOptions = {},
  ) {
    this.checkpointId = manifest.id;
    this.hypervisor = manifest.hypervisor;
    this.machine = manifest.machine;
    this.machineType = manifest.identity.machineType;
    this.layout = manifest.layout;
    this.disks = manifest.disks;
    this.frozen = manifest.frozen;
    this.#chain = new ChainReader(backend, repositoryId, manifest.chain, options);
  }

  /** So far, of all reads together. */
  get effort(): ReadEffort {
    return this.#chain.effort;
  }

  /** Where the pages lie. Costs the same for a memory of any size. @throws REPO_DAMAGED, CHECKPOINT_GONE */
  index(options: CallOptions = {}): Promise<PageIndex> {
    if (this.#index === undefined) {
      const { backend, repositoryId, manifest } = this;
      const opening = this.#orGone(options, () =>
        PageIndex.open({ backend, repositoryId }, manifest, options),
      );
      this.#index = opening;
      // A failure may pass: the next call tries again.
      opening.catch(() => (this.#index = undefined));
    }
    return this.#index;
  }

  /** References of pages [firstPage, endPage), 0 for a zero page. Caller owns them. @throws as `index` */
  async refsIn(firstPage: number, endPage: number, options: CallOptions = {}): Promise<Float64Array> {
    const index = await this.index(options);
    return (await this.#orGone(options, () => index.window(firstPage, endPage, options))).refs;
  }

  /** The same of all pages, window by window; windows of zero pages may be left out. @throws as `index` */
  async *allRefs(options: CallOptions = {}): AsyncGenerator<Pick<IndexWindow, 'firstPage' | 'refs'>, void> {
    const index = await this.index(options);
    const windows = index.windows(options);
    for (;;) {
      const step = await this.#orGone(options, () => windows.next());
      if (step.done === true) return;
      yield step.value;
    }
  }

  /**
   * @param pages ascending
   * @param into 4096 bytes a page
   * @throws REPO_DAMAGED, INTERRUPTED, and what the backend throws; RangeError for a page outside the layout
   */
  async readPages(pages: Uint32Array, into: Uint8Array, options: CallOptions = {}): Promise<void> {
    const index = await this.index(options);
    const refs = await this.#orGone(options, () => index.refsOf(pages, options));
    await this.readPagesByRef(refs, into, options);
  }

  /** See `ChainReader.readPagesByRef`. */
  readPagesByRef(refs: Float64Array, into: Uint8Array, options: CallOptions = {}): Promise<void> {
    return this.#orGone(options, () => this.#chain.readPagesByRef(refs, into, options));
  }

  /** Empty when the checkpoint has none. @throws REPO_DAMAGED, and what the backend throws */
  deviceState(options: CallOptions = {}): Promise<Uint8Array> {
    return this.#orGone(options, () => this.#deviceState(options));
  }

  async #deviceState(options: CallOptions): Promise<Uint8Array> {
    const entry = this.manifest.deviceState;
    if (entry === null) return new Uint8Array(0);
    const bytes = await this.#chain.readBlob(entry.pack, entry.frame, options);
    if (bytes.length !== entry.sizeBytes || sha256Hex(bytes) !== entry.sha256) {
      const key = new ChainKeys(this.manifest.chain).pack(entry.pack);
      throw damaged(key, 'not the device state that the manifest lists', { frame: entry.frame });
    }
    return bytes;
  }

  /**
   * All pages of all regions, region by region, at most 1 MiB a chunk. The next window is read while the
   * consumer is at work on this one.
   * @throws REPO_DAMAGED, INTERRUPTED, and what the backend throws
   */
  async *pages(signal?: AbortSignal): AsyncGenerator<PageChunk> {
    const options = { signal };
    const mostPages = Math.max(0, ...this.layout.regions.map(({ pageCount }) => pageCount));
    const bufferBytes = Math.min(WINDOW_PAGES, mostPages) * PAGE_SIZE_BYTES;
    const buffers = [new Uint8Array(bufferBytes), new Uint8Array(bufferBytes)];
    let windowNumber = 0;
    let ahead: Promise<Window> | undefined;
    for (const [firstPage, endPage] of windowsOf(this.layout, WINDOW_PAGES)) {
      const buffer = buffers[windowNumber++ % 2]!;
      const current = ahead;
      const reading = this.#readWindow(firstPage, endPage, buffer, options);
      // Met when its turn comes; the consumer may stop before that.
      reading.catch(() => undefined);
      ahead = reading;
      if (current !== undefined) yield* chunksOf(await current, signal);
    }
    if (ahead !== undefined) yield* chunksOf(await ahead, signal);
  }

  /**
   * All pages of all regions, each once, in the order that costs least: nearly every frame of the chain is
   * decoded once. Each 4 GiB of a region are read on their own, runs of zero pages behind the others. At most
   * 1 MiB a chunk.
   * @throws as `pages`
   */
  async *pagesAsStored(signal?: AbortSignal): AsyncGenerator<PageChunk> {
    const options = { signal };
    const batch = new PageBatch(this.layout, MAX_CHUNK_PAGES);
    for (const [firstPage, endPage] of windowsOf(this.layout, PART_PAGES)) {
      const refs = await this.refsIn(firstPage, endPage, options);
      const sink = { page: (slot: number, page: Uint8Array) => batch.add(firstPage + slot, page) };
      const steps = this.#chain.readEachInSteps(refs, sink, options);
      for (;;) {
        throwIfInterrupted(signal, 'reading the pages of a checkpoint');
        const { done } = await this.#orGone(options, () => steps.next());
        yield* batch.take();
        if (done === true) break;
      }
      const window: Window = { firstPage, refs, bytes: NO_BYTES };
      for (const chunk of chunksOf(window, signal)) if (chunk.bytes === null) yield chunk;
    }
  }

  #orGone<T>(options: CallOptions, work: () => Promise<T>): Promise<T> {
    return orGone(this.backend, this.manifest, options, work);
  }

  async #readWindow(
    firstPage: number,
    endPage: number,
    buffer: Uint8Array,
    options: CallOptions,
  ): Promise<Window> {
    const refs = await this.refsIn(firstPage, endPage, options);
    const stored = refs.filter((ref: RecordRef) => ref !== ZERO_REF);
    const bytes = buffer.subarray(0, stored.length * PAGE_SIZE_BYTES);
    await this.readPagesByRef(stored, bytes, options);
    return { firstPage, refs, bytes };
  }
}

function* windowsOf(layout: MemoryLayout, windowPages: number): Generator<readonly [number, number]> {
  for (const { firstPage, pageCount } of layout.regions) {
    const end = firstPage + pageCount;
    for (let first = firstPage; first < end; first += windowPages)
      yield [first, Math.min(end, first + windowPages)];
  }
}

function* chunksOf({ firstPage, refs, bytes }: Window, signal?: AbortSignal): Generator<PageChunk> {
  let at = 0;
  for (let first = 0; first < refs.length;) {
    throwIfInterrupted(signal, 'reading the pages of a checkpoint');
    const isZero = refs[first] === ZERO_REF;
    let end = first + 1;
    while (end < refs.length && end - first < MAX_CHUNK_PAGES && (refs[end] === ZERO_REF) === isZero) end++;
    const pageCount = end - first;
    const length = isZero ? 0 : pageCount * PAGE_SIZE_BYTES;
    const chunk = isZero ? null : bytes.subarray(at, at + length);
    yield { firstPage: firstPage + first, pageCount, bytes: chunk };
    at += length;
    first = end;
  }
}
