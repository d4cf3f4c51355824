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
import { loadMap } from './load-map.js';
import type { Manifest } from '../../format/manifest.js';
import { PageBatch } from './page-batch.js';
import type { PageMap } from './page-map.js';
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

const NO_BYTES = new Uint8Array(0);

/**
 * Pages [firstPage, endPage) of one region, with the bytes of those that have a record, one after the other.
 */
interface Window {
  readonly firstPage: number;
  readonly endPage: number;
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
  #map: Promise<PageMap> | undefined;

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

  /** Where each page lies. Shared: do not change it. @throws REPO_DAMAGED */
  map(options: CallOptions = {}): Promise<PageMap> {
    if (this.#map === undefined) {
      const loading = this.#orGone(options, () =>
        loadMap(this.backend, this.repositoryId, this.manifest, options),
      );
      this.#map = loading;
      // A failure may pass: the next call tries again.
      loading.catch(() => (this.#map = undefined));
    }
    return this.#map;
  }

  /**
   * @param pages ascending
   * @param into 4096 bytes a page
   * @throws REPO_DAMAGED, INTERRUPTED, and what the backend throws; RangeError for a page outside the layout
   */
  async readPages(pages: Uint32Array, into: Uint8Array, options: CallOptions = {}): Promise<void> {
    const map = await this.map(options);
    const refs = Float64Array.from(pages, (page) => map.refOf(page));
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
    const map = await this.map(options);
    const mostPages = Math.max(0, ...this.layout.regions.map(({ pageCount }) => pageCount));
    const bufferBytes = Math.min(WINDOW_PAGES, mostPages) * PAGE_SIZE_BYTES;
    const buffers = [new Uint8Array(bufferBytes), new Uint8Array(bufferBytes)];
    let windowNumber = 0;
    let ahead: Promise<Window> | undefined;
    for (const [firstPage, endPage] of windowsOf(this.layout)) {
      const buffer = buffers[windowNumber++ % 2]!;
      const current = ahead;
      const reading = this.#readWindow(map, firstPage, endPage, buffer, options);
      // Met when its turn comes; the consumer may stop before that.
      reading.catch(() => undefined);
      ahead = reading;
      if (current !== undefined) yield* chunksOf(map, await current, signal);
    }
    if (ahead !== undefined) yield* chunksOf(map, await ahead, signal);
  }

  /**
   * All pages of all regions, each once, in the order that costs least: nearly every frame of the chain is decoded once. Runs
   * of zero pages come last. At most 1 MiB a chunk.
   * @throws as `pages`
   */
  async *pagesAsStored(signal?: AbortSignal): AsyncGenerator<PageChunk> {
    const options = { signal };
    const map = await this.map(options);
    const { refs } = map;
    const stored = Uint32Array.from(pagesOf(this.layout)).filter((page) => refs[page] !== ZERO_REF);
    const batch = new PageBatch(this.layout, MAX_CHUNK_PAGES);
    const steps = this.#chain.readEachInSteps(
      Float64Array.from(stored, (page) => refs[page]!),
      { page: (slot, page) => batch.add(stored[slot]!, page) },
      options,
    );
    for (;;) {
      throwIfInterrupted(signal, 'reading the pages of a checkpoint');
      const { done } = await this.#orGone(options, () => steps.next());
      yield* batch.take();
      if (done === true) break;
    }
    for (const [firstPage, endPage] of windowsOf(this.layout)) {
      const window: Window = { firstPage, endPage, bytes: NO_BYTES };
      for (const chunk of chunksOf(map, window, signal)) if (chunk.bytes === null) yield chunk;
    }
  }

  #orGone<T>(options: CallOptions, work: () => Promise<T>): Promise<T> {
    return orGone(this.backend, this.manifest, options, work);
  }

  async #readWindow(
    map: PageMap,
    firstPage: number,
    endPage: number,
    buffer: Uint8Array,
    options: CallOptions,
  ): Promise<Window> {
    const refs = map.refs.subarray(firstPage, endPage).filter((ref: RecordRef) => ref !== ZERO_REF);
    const bytes = buffer.subarray(0, refs.length * PAGE_SIZE_BYTES);
    await this.readPagesByRef(refs, bytes, options);
    return { firstPage, endPage, bytes };
  }
}

function* pagesOf({ regions }: MemoryLayout): Generator<number> {
  for (const { firstPage, pageCount } of regions)
    for (let page = firstPage; page < firstPage + pageCount; page++) yield page;
}

function* windowsOf(layout: MemoryLayout): Generator<readonly [number, number]> {
  for (const { firstPage, pageCount } of layout.regions) {
    const end = firstPage + pageCount;
    for (let first = firstPage; first < end; first += WINDOW_PAGES)
      yield [first, Math.min(end, first + WINDOW_PAGES)];
  }
}

function* chunksOf(
  map: PageMap,
  { firstPage, endPage, bytes }: Window,
  signal?: AbortSignal,
): Generator<PageChunk> {
  let at = 0;
  for (let first = firstPage; first < endPage;) {
    throwIfInterrupted(signal, 'reading the pages of a checkpoint');
    const isZero = map.refs[first] === ZERO_REF;
    let end = first + 1;
    while (end < endPage && end - first < MAX_CHUNK_PAGES && (map.refs[end] === ZERO_REF) === isZero) end++;
    const pageCount = end - first;
    const length = isZero ? 0 : pageCount * PAGE_SIZE_BYTES;
    yield { firstPage: first, pageCount, bytes: isZero ? null : bytes.subarray(at, at + length) };
    at += length;
    first = end;
  }
}
