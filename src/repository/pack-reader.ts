/** Reads frames of the packs of one chain. Header, directory and trailer are checked when a pack is first touched. */

import { isCheckpointError } from '../errors.js';
import type { CallOptions, StorageBackend } from '../storage/backend.js';
import type { ChainKeys } from './chain-keys.js';
import { damaged } from './damage.js';
import type { PackEntry } from './manifest.js';
import {
  checkPackHeader,
  CUT_CHECKSUM_BYTES,
  decodeDirectory,
  DIRECTORY_ENTRY_BYTES,
  locateDirectory,
  PACK_HEADER_BYTES,
  PACK_TRAILER_BYTES,
  type FrameEntry,
} from './pack-format.js';

export interface OpenPack {
  readonly key: string;
  readonly seq: number;
  readonly sizeBytes: number;
  readonly frames: readonly FrameEntry[];
  readonly directorySha256: string;
}

/** Neighbouring frames are fetched together up to this: one call instead of many, little read in vain. */
const MAX_FETCH_BYTES = 2 * 1024 * 1024;

export class PackReader {
  readonly #packs = new Map<number, Promise<OpenPack>>();

  constructor(
    private readonly backend: StorageBackend,
    readonly keys: ChainKeys,
    private readonly owner: Uint8Array,
  ) {}

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

  /** As `open`, and compares with what a manifest says of the pack. */
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
   * Stored frames, header included, as they lie in the pack; not decoded, but compared with the directory's checksum
   * by way of their header. Neighbours may share memory.
   * @param frames ascending
   * @throws REPO_DAMAGED, and what the backend throws
   */
  async *frames(
    seq: number,
    frames: readonly number[],
    options: CallOptions = {},
  ): AsyncGenerator<StoredFrame> {
    const pack = await this.open(seq, options);
    for (let from = 0; from < frames.length;) {
      const first = entryOf(pack, frames[from]!);
      let to = from + 1;
      let end = first.offset + first.lengthBytes;
      for (; to < frames.length; to++) {
        const next = entryOf(pack, frames[to]!);
        if (next.offset !== end || end + next.lengthBytes - first.offset > MAX_FETCH_BYTES) break;
        end += next.lengthBytes;
      }
      const bytes = await load(this.backend, pack.key, first.offset, end - first.offset, options);
      for (; from < to; from++) {
        const frame = frames[from]!;
        const entry = entryOf(pack, frame);
        const stored = bytes.subarray(
          entry.offset - first.offset,
          entry.offset - first.offset + entry.lengthBytes,
        );
        if (Buffer.compare(stored.subarray(32, 32 + CUT_CHECKSUM_BYTES), entry.checksum) !== 0) {
          throw damaged(pack.key, 'frame checksum differs from the directory', { frame });
        }
        yield { key: pack.key, frame, entry, bytes: stored };
      }
    }
  }

  async #open(seq: number, options: CallOptions): Promise<OpenPack> {
    const key = this.keys.pack(seq);
    let sizeBytes: number;
    try {
      ({ sizeBytes } = await this.backend.stat(key, options));
    } catch (error) {
      if (isCheckpointError(error, 'STORAGE_NOT_FOUND')) throw damaged(key, 'pack is missing', {}, error);
      throw error;
    }
    if (sizeBytes < PACK_HEADER_BYTES + PACK_TRAILER_BYTES) throw damaged(key, 'pack is cut off');
    const header = await load(this.backend, key, 0, PACK_HEADER_BYTES, options);
    checkPackHeader(key, header, seq, this.owner);
    const last = await load(this.backend, key, sizeBytes - PACK_TRAILER_BYTES, PACK_TRAILER_BYTES, options);
    const trailer = locateDirectory(key, last, seq, sizeBytes);
    const endBytes = trailer.frameCount * DIRECTORY_ENTRY_BYTES + PACK_TRAILER_BYTES;
    const end = await load(this.backend, key, trailer.directoryOffset, endBytes, options);
    const { frames, sha256 } = decodeDirectory(key, header, end, trailer);
    return { key, seq, sizeBytes, frames, directorySha256: sha256 };
  }
}

export interface StoredFrame {
  readonly key: string;
  readonly frame: number;
  readonly entry: FrameEntry;
  readonly bytes: Uint8Array;
}

function entryOf(pack: OpenPack, frame: number): FrameEntry {
  const entry = pack.frames[frame];
  if (entry === undefined)
    throw damaged(pack.key, 'a record in a frame that the pack does not have is referred to', { frame });
  return entry;
}

/** What a pack is said to have and has not is damage, not a mistake in the range. */
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
