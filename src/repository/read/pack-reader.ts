/**
 * Reads frames of the packs of one chain. Header, directory and trailer are checked when a pack is first
 * touched.
 */

import { LRUCache } from 'lru-cache';

import { isCheckpointError } from '../../errors.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import type { ChainKeys } from '../../format/chain-keys.js';
import { damaged } from '../../records/damage.js';
import type { PackEntry } from '../../format/manifest.js';
import {
  checkPackHeader,
  CUT_CHECKSUM_BYTES,
  decodeDirectory,
  DIRECTORY_ENTRY_BYTES,
  locateDirectory,
  PACK_HEADER_BYTES,
  PACK_TRAILER_BYTES,
  type FrameEntry,
} from '../../format/pack-format.js';
import { EffortCounter } from './read-effort.js';

export interface OpenPack {
  readonly key: string;
  readonly seq: number;
  readonly sizeBytes: number;
  readonly frames: readonly FrameEntry[];
  readonly directorySha256: string;
}

/** Neighbouring frames are fetched together up to this: one call instead of many, little read in vain. */
const MAX_FETCH_BYTES = 2 * 1024 * 1024;
/** Fetches under way at a time: scattered frames of a pack cost one wait for each of them otherwise. */
const FETCHES_AHEAD = 4;
/**
 * When a pack is opened, so much of its end is fetched at once: trailer and the directory of some 680 frames.
 */
const END_BYTES = 16 * 1024;
/**
 * A pack up to this size is fetched as a whole: one call instead of three and more. Packs of short increments
 * are smaller.
 */
const WHOLE_PACK_BYTES = 256 * 1024;
/** Default of `keptBytes`. */
const KEPT_BYTES = 16 * 1024 * 1024;

export class PackReader {
  readonly #packs = new Map<number, Promise<OpenPack>>();
  readonly effort = new EffortCounter();
  /** Whole packs by number. */
  readonly #whole: LRUCache<number, Uint8Array>;

  constructor(
    private readonly backend: StorageBackend,
    readonly keys: ChainKeys,
    private readonly owner: Uint8Array,
    /** Budget in bytes for whole packs that are kept for further frames. */
    keptBytes = KEPT_BYTES,
  ) {
    this.#whole = new LRUCache({
      maxSize: Math.max(1, Math.floor(keptBytes)),
      sizeCalculation: (bytes) => bytes.length,
    });
  }

  /** @throws REPO_DAMAGED, REPO_VERSION, and what the backend throws */
  open(seq: number, options: CallOptions = {}): Promise<OpenPack> {
    const known = this.#packs.get(seq);
    if (known !== undefined) return known;
    const opening = this.#open(seq, options);
    this.#packs.set(seq, opening);
    // A failure may pass (network, interruption): the next call tries again.
    opening.catch(() => this.#packs.delete(seq));
    return opening;
  }

  /** Opens a pack as `open` does, and compares it with what a manifest says of it. */
  async openListed(entry: PackEntry, options: CallOptions = {}): Promise<OpenPack> {
    const pack = await this.open(entry.seq, options);
    const same =
      pack.sizeBytes === entry.sizeBytes &&
      pack.frames.length === entry.frameCount &&
      pack.directorySha256 === entry.directorySha256;
    if (!same) throw damaged(pack.key, 'not the pack that the manifest lists');
    return pack;
  }

  /**
   * Stored frames, header included, as they lie in the pack; not decoded, but compared with the directory's
   * checksum by way of their header. Neighbours may share memory.
   * @param frames ascending
   * @throws REPO_DAMAGED, and what the backend throws
   */
  async *frames(
    seq: number,
    frames: readonly number[],
    options: CallOptions = {},
  ): AsyncGenerator<StoredFrame> {
    for (let done = 0; ;) {
      const pack = await this.open(seq, options);
      try {
        for await (const stored of this.#framesOf(pack, frames.slice(done), options)) {
          done++;
          yield stored;
        }
        return;
      } catch (error) {
        if (!isCheckpointError(error, 'REPO_DAMAGED')) throw error;
        // The pack may have been thinned since it was opened: then its frames lie elsewhere.
        this.#packs.delete(seq);
        const now = await this.open(seq, options);
        if (now.directorySha256 === pack.directorySha256) throw error;
      }
    }
  }

  async *#framesOf(
    pack: OpenPack,
    frames: readonly number[],
    options: CallOptions,
  ): AsyncGenerator<StoredFrame> {
    const spans = spansOf(pack, frames);
    const ahead: Fetch[] = [];
    for (;;) {
      while (ahead.length < FETCHES_AHEAD) {
        const { value: span } = spans.next();
        if (span === undefined) break;
        const loading = this.#load(pack, span, options);
        // The failure is met when the frame's turn comes, or not at all when another frame fails first.
        loading.catch(() => undefined);
        ahead.push({ span, loading });
      }
      const fetch = ahead.shift();
      if (fetch === undefined) return;
      const bytes = await fetch.loading;
      for (const frame of fetch.span.frames) {
        const entry = entryOf(pack, frame);
        const at = entry.offset - fetch.span.offset;
        const stored = bytes.subarray(at, at + entry.lengthBytes);
        if (Buffer.compare(stored.subarray(32, 32 + CUT_CHECKSUM_BYTES), entry.checksum) !== 0) {
          throw damaged(pack.key, 'frame checksum differs from the directory', { frame });
        }
        yield { key: pack.key, frame, entry, bytes: stored };
      }
    }
  }

  async #open(seq: number, options: CallOptions): Promise<OpenPack> {
    const key = this.keys.pack(seq);
    const sizeBytes = await this.#sizeOf(key, options);
    try {
      return await this.#openAt(seq, sizeBytes, options);
    } catch (error) {
      if (!isCheckpointError(error, 'REPO_DAMAGED')) throw error;
      // The pack may have been thinned in between.
      const now = await this.#sizeOf(key, options);
      if (now === sizeBytes) throw error;
      return this.#openAt(seq, now, options);
    }
  }

  async #sizeOf(key: string, options: CallOptions): Promise<number> {
    try {
      return (await this.backend.stat(key, options)).sizeBytes;
    } catch (error) {
      if (isCheckpointError(error, 'STORAGE_NOT_FOUND')) throw damaged(key, 'pack is missing', {}, error);
      throw error;
    }
  }

  async #openAt(seq: number, sizeBytes: number, options: CallOptions): Promise<OpenPack> {
    const key = this.keys.pack(seq);
    if (sizeBytes < PACK_HEADER_BYTES + PACK_TRAILER_BYTES) throw damaged(key, 'pack is cut off');
    const [header, tail] = await this.#loadEnds(seq, key, sizeBytes, options);
    checkPackHeader(key, header, seq, this.owner);
    const trailer = locateDirectory(key, tail.subarray(-PACK_TRAILER_BYTES), seq, sizeBytes);
    const endBytes = trailer.frameCount * DIRECTORY_ENTRY_BYTES + PACK_TRAILER_BYTES;
    const end =
      endBytes <= tail.length
        ? tail.subarray(-endBytes)
        : await this.#fetch(key, trailer.directoryOffset, endBytes, options);
    const { frames, sha256 } = decodeDirectory(key, header, end, trailer);
    return { key, seq, sizeBytes, frames, directorySha256: sha256 };
  }

  /** Header, and as much of the end as is likely to hold the directory. */
  async #loadEnds(
    seq: number,
    key: string,
    sizeBytes: number,
    options: CallOptions,
  ): Promise<readonly [Uint8Array, Uint8Array]> {
    if (sizeBytes <= WHOLE_PACK_BYTES) {
      const bytes = await this.#fetch(key, 0, sizeBytes, options);
      this.#whole.set(seq, bytes);
      return [bytes.subarray(0, PACK_HEADER_BYTES), bytes.subarray(PACK_HEADER_BYTES)];
    }
    const tailFrom = Math.max(PACK_HEADER_BYTES, sizeBytes - END_BYTES);
    return Promise.all([
      this.#fetch(key, 0, PACK_HEADER_BYTES, options),
      this.#fetch(key, tailFrom, sizeBytes - tailFrom, options),
    ]);
  }

  async #fetch(
    key: string,
    offsetBytes: number,
    lengthBytes: number,
    options: CallOptions,
  ): Promise<Uint8Array> {
    const bytes = await load(this.backend, key, offsetBytes, lengthBytes, options);
    this.effort.fetched(bytes);
    return bytes;
  }

  #load(pack: OpenPack, { offset, lengthBytes }: Span, options: CallOptions): Promise<Uint8Array> {
    const whole = this.#whole.get(pack.seq);
    if (whole !== undefined) return Promise.resolve(whole.subarray(offset, offset + lengthBytes));
    return this.#fetch(pack.key, offset, lengthBytes, options);
  }
}

export interface StoredFrame {
  readonly key: string;
  readonly frame: number;
  readonly entry: FrameEntry;
  readonly bytes: Uint8Array;
}

/** Neighbouring frames, fetched in one call. */
interface Span {
  readonly frames: readonly number[];
  readonly offset: number;
  readonly lengthBytes: number;
}

interface Fetch {
  readonly span: Span;
  readonly loading: Promise<Uint8Array>;
}

function* spansOf(pack: OpenPack, frames: readonly number[]): Generator<Span, undefined> {
  for (let from = 0; from < frames.length;) {
    const { offset, lengthBytes } = entryOf(pack, frames[from]!);
    let end = offset + lengthBytes;
    let to = from + 1;
    for (; to < frames.length; to++) {
      const next = entryOf(pack, frames[to]!);
      if (next.offset !== end || end + next.lengthBytes - offset > MAX_FETCH_BYTES) break;
      end += next.lengthBytes;
    }
    yield { frames: frames.slice(from, to), offset, lengthBytes: end - offset };
    from = to;
  }
}

function entryOf(pack: OpenPack, frame: number): FrameEntry {
  const entry = pack.frames[frame];
  if (entry === undefined)
    throw damaged(pack.key, 'a record in a frame that the pack does not have is referred to', { frame });
  return entry;
}

/** A range that the pack is said to have and has not is damage, not a mistake of the caller. */
async function load(
  backend: StorageBackend,
  key: string,
  offsetBytes: number,
  lengthBytes: number,
  options: CallOptions,
): Promise<Uint8Array> {
  try {
    return await backend.load(key, { offsetBytes, lengthBytes }, options);
  } catch (error) {
    if (isCheckpointError(error, 'STORAGE_RANGE') || isCheckpointError(error, 'STORAGE_NOT_FOUND')) {
      throw damaged(key, 'pack is cut off or missing', {}, error);
    }
    throw error;
  }
}
