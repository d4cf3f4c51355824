/**
 * One index segment as it is read: its directory stays, slices come when they are asked for. What was used
 * lately is kept by a shelf that the segments of one reader share, or those of all checkpoints that are read
 * together.
 */

import { LRUCache } from 'lru-cache';

import { isCheckpointError } from '../../errors.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import { ChainKeys, ownerTag } from '../../format/chain-keys.js';
import { SegmentDirectory, segmentHeadBytes } from '../../format/index-segment.js';
import { decodeSlice, ENTRY_BYTES, type IndexEntries } from '../../format/index-slice.js';
import type { SegmentEntry } from '../../format/manifest.js';
import { damaged } from '../../records/damage.js';

export interface SegmentSource {
  readonly backend: StorageBackend;
  readonly repositoryId: string;
  readonly chain: string;
  /** Page span of the checkpoint that names the segment. */
  readonly pageSpan: number;
}

/** Opened segments, and decoded slices within a budget of bytes, least recently used first out. */
export class SegmentShelf {
  readonly slices: LRUCache<string, IndexEntries>;
  readonly #open = new Map<string, Promise<SegmentReader>>();

  /** @param budgetBytes at least what the slices take that one window of pages lies in */
  constructor(budgetBytes: number) {
    this.slices = new LRUCache({
      maxSize: budgetBytes,
      sizeCalculation: ({ pages }) => pages.length * ENTRY_BYTES + OVERHEAD_BYTES,
    });
  }

  /** @throws as `SegmentReader.open` */
  segment(source: SegmentSource, entry: SegmentEntry, options: CallOptions): Promise<SegmentReader> {
    const name = nameOf(source, entry);
    const known = this.#open.get(name);
    if (known !== undefined) return known;
    const opening = SegmentReader.open(source, entry, this, options);
    this.#open.set(name, opening);
    // A failure may pass: the next call tries again.
    opening.catch(() => this.#open.delete(name));
    return opening;
  }
}

/** Only manifests that agree on a segment share it. */
function nameOf({ pageSpan }: SegmentSource, { seq, level, directorySha256 }: SegmentEntry): string {
  return `${seq} ${level} ${directorySha256} ${pageSpan}`;
}

const OVERHEAD_BYTES = 512;
/**
 * A segment up to this size is read in one go, and kept as it is stored. Most are: 57 of them take 3.6 MiB.
 */
const WHOLE_BYTES = 64 * 1024;
/**
 * Slices that lie one after the other are read in one go, 1.7 MB at most when nothing of them could be
 * compressed.
 */
const SLICES_AT_A_TIME = 16;

export class SegmentReader {
  readonly #source: SegmentSource;
  /** On the shelf. */
  readonly #name: string;
  readonly #directory: SegmentDirectory;
  readonly #shelf: SegmentShelf;
  /** The whole segment, when it is small. */
  readonly #whole: Uint8Array | undefined;

  private constructor(
    source: SegmentSource,
    entry: SegmentEntry,
    shelf: SegmentShelf,
    directory: SegmentDirectory,
    whole: Uint8Array | undefined,
  ) {
    this.#source = source;
    this.#name = nameOf(source, entry);
    this.#shelf = shelf;
    this.#directory = directory;
    this.#whole = whole;
  }

  /** @throws REPO_DAMAGED, REPO_VERSION, and what the backend throws */
  static async open(
    source: SegmentSource,
    entry: SegmentEntry,
    shelf: SegmentShelf,
    options: CallOptions,
  ): Promise<SegmentReader> {
    const { backend, repositoryId, chain, pageSpan } = source;
    const key = new ChainKeys(chain).segment(entry.seq);
    const headBytes = segmentHeadBytes(entry.entryCount);
    if (headBytes > entry.sizeBytes || entry.entryCount > pageSpan)
      throw damaged(key, 'the manifest lists an index segment that cannot be');
    const lengthBytes = entry.sizeBytes <= WHOLE_BYTES ? entry.sizeBytes : headBytes;
    const [{ sizeBytes }, bytes] = await orDamaged(key, () =>
      Promise.all([backend.stat(key, options), backend.load(key, { offsetBytes: 0, lengthBytes }, options)]),
    );
    if (sizeBytes !== entry.sizeBytes) throw damaged(key, 'not the index segment that the manifest lists');
    const id = { seq: entry.seq, level: entry.level, owner: ownerTag(repositoryId, chain) };
    const directory = new SegmentDirectory(key, bytes.subarray(0, headBytes), id, entry, pageSpan);
    return new SegmentReader(source, entry, shelf, directory, lengthBytes > headBytes ? bytes : undefined);
  }

  /** All slices in order, each decoded once. @throws as `open` */
  async *slices(options: CallOptions): AsyncGenerator<IndexEntries> {
    const { sliceCount } = this.#directory;
    for (let first = 0; first < sliceCount; first += SLICES_AT_A_TIME)
      yield* await this.#read(first, Math.min(sliceCount, first + SLICES_AT_A_TIME), options);
  }

  /** The slices in which pages of [firstPage, endPage) may lie. @throws as `open` */
  async slicesIn(firstPage: number, endPage: number, options: CallOptions): Promise<readonly IndexEntries[]> {
    const first = Math.max(0, this.#directory.sliceOf(firstPage));
    const end = this.#directory.sliceOf(endPage - 1) + 1;
    const slices: IndexEntries[] = [];
    for (let number = first; number < end;) {
      const known = this.#shelf.slices.get(this.#nameOf(number));
      let to = number + 1;
      if (known === undefined) {
        const most = Math.min(end, number + SLICES_AT_A_TIME);
        while (to < most && !this.#shelf.slices.has(this.#nameOf(to))) to++;
      }
      slices.push(...(known === undefined ? await this.#readAndKeep(number, to, options) : [known]));
      number = to;
    }
    return slices;
  }

  /** The slice in which the page may lie. @throws as `open` */
  async sliceOf(page: number, options: CallOptions): Promise<IndexEntries | undefined> {
    const number = this.#directory.sliceOf(page);
    if (number < 0) return undefined;
    const known = this.#shelf.slices.get(this.#nameOf(number));
    return known ?? (await this.#readAndKeep(number, number + 1, options))[0];
  }

  #nameOf(number: number): string {
    return `${number} of ${this.#name}`;
  }

  async #readAndKeep(first: number, end: number, options: CallOptions): Promise<readonly IndexEntries[]> {
    const slices = await this.#read(first, end, options);
    slices.forEach((slice, i) => this.#shelf.slices.set(this.#nameOf(first + i), slice));
    return slices;
  }

  async #read(first: number, end: number, options: CallOptions): Promise<readonly IndexEntries[]> {
    const { key } = this.#directory;
    const range = this.#directory.range(first, end);
    const { offsetBytes, lengthBytes } = range;
    const stored =
      this.#whole?.subarray(offsetBytes, offsetBytes + lengthBytes) ??
      (await orDamaged(key, () => this.#source.backend.load(key, range, options)));
    const slices: IndexEntries[] = [];
    for (let number = first, at = 0; number < end; number++) {
      const length = this.#directory.range(number, number + 1).lengthBytes;
      slices.push(decodeSlice(stored.subarray(at, at + length), this.#directory.place(number)));
      at += length;
    }
    return slices;
  }
}

async function orDamaged<T>(key: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (isCheckpointError(error, 'STORAGE_NOT_FOUND'))
      throw damaged(key, 'index segment is missing', {}, error);
    if (isCheckpointError(error, 'STORAGE_RANGE'))
      throw damaged(key, 'not the index segment that the manifest lists', {}, error);
    throw error;
  }
}
