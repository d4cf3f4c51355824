/**
 * Decides what can go from a chain, given the checkpoints that stay (docs/format.md, forgetting).
 *
 * Bases and sources lie in packs of a lower number, or before in the same pack. So one walk over the packs,
 * newest first, knows of each pack all that is needed of it when its turn comes:
 *
 *     nothing needed                 -> it is removed
 *     a good part not needed,        -> it is thinned, and only what is left needs what it is based on
 *     and no manifest lists it
 *     anything else                  -> it stays, and all its records need what they are based on
 *
 * After that, every record in every pack that is left can be read. Verification relies on it.
 */

import type { CallOptions, StorageBackend, StoredObject } from '../../storage/backend.js';
import { ownerTag, seqOfKey, type ChainKeys } from '../../format/chain-keys.js';
import { isBlankRecord } from '../../format/blank-record.js';
import { asDamagedObject, damaged, type DamagedObject } from '../../records/damage.js';
import { effectiveRefs } from '../read/effective-refs.js';
import {
  decodeFrameAsync,
  FRAME_HEADER_BYTES,
  FRAME_KIND_BLOB,
  FRAME_KIND_PATCH,
} from '../../format/frame.js';
import type { Manifest } from '../../format/manifest.js';
import { NeededRecords, type NeededOfPack } from './needed-records.js';
import { foreignText, isOfChain } from './origin.js';
import { DIRECTORY_ENTRY_BYTES } from '../../format/pack-format.js';
import { PackReader } from '../read/pack-reader.js';
import { readPatch } from '../../format/patch-frame.js';
import { frameKey, frameKeyOfRef, ZERO_REF } from '../../format/record-ref.js';
import { isMark } from '../write/sequence-mark.js';

export interface SweepSource {
  readonly backend: StorageBackend;
  readonly repositoryId: string;
  readonly keys: ChainKeys;
}

export interface PackChange {
  readonly object: StoredObject;
  /** The records that stay; undefined when the pack is removed. */
  readonly thinTo?: NeededOfPack;
  /** Bytes that this step frees; an estimate for a pack that is thinned. */
  readonly freedBytes: number;
}

export interface SweepPlan {
  /** Packs to be removed or thinned, newest first, which is the order in which it must be done. */
  readonly packs: readonly PackChange[];
  /** Segments to be removed, newest first. */
  readonly segments: readonly StoredObject[];
  /** Damage because of which less goes than could. */
  readonly problems: readonly string[];
  /** Estimated, where packs are thinned. */
  readonly freedBytes: number;
}

export interface SweepPlanOptions extends CallOptions {
  /** A pack is written anew when at least this share of it is not needed. */
  readonly thinAbove?: number;
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
}

/**
 * The share is the one that restic leaves unused in a repository. A pack that stays keeps alive what its
 * unneeded records are based on, so more is freed than the share says: of 13 MB in 99 increments of a guest
 * that rewrites 32 MiB, forgetting all but the last frees 4.3 MB with 0, 3.0 with 0.05, 2.0 with 0.1 and 1.7
 * with 0.2.
 */
const THIN_ABOVE = 0.05;
/** Page index, codec, two lengths, base: what a record takes in the columns. */
const COLUMN_BYTES = 17;
const BLANK_FRAME_BYTES = FRAME_HEADER_BYTES + 32;

/**
 * Changes nothing.
 * @param manifests all that stay, in order
 * @param unreadable objects in the place of manifests that stay: what they need is not known
 * @throws what is not about damage
 */
export async function planSweep(
  source: SweepSource,
  manifests: readonly Manifest[],
  unreadable: readonly DamagedObject[],
  options: SweepPlanOptions = {},
): Promise<SweepPlan> {
  if (unreadable.length > 0) return nothing(unreadable.map(({ message }) => message));
  const { backend, keys } = source;
  const objects = async (prefix: string, keyOf: (seq: number) => string): Promise<StoredObject[]> =>
    (await backend.list(prefix, options)).filter(({ key }) => key === keyOf(seqOfKey(key)));
  const packs = await objects(keys.packs, (seq) => keys.pack(seq));
  const segments = await objects(keys.index, (seq) => keys.segment(seq));
  let planner = new Planner(source, manifests, options);
  let packChanges = await planner.packs(packs);
  if (planner.problems.length > 0) {
    // A pack that is written anew has to be read, and so has what it is based on: nothing is thinned over
    // damage.
    planner = new Planner(source, manifests, { ...options, thinAbove: Infinity });
    packChanges = await planner.packs(packs);
  }
  const owner = ownerTag(source.repositoryId, keys.chain);
  const foreign = [...planner.foreign];
  const named = new Set(manifests.flatMap((manifest) => manifest.segments.map(({ seq }) => seq)));
  const unnamed: StoredObject[] = [];
  for (const object of segments) {
    if (named.has(seqOfKey(object.key))) continue;
    if (object === segments.at(-1) && (await isMark(backend, object, options))) continue;
    if (await isOfChain(backend, object, 'segment', owner, options)) unnamed.push(object);
    else foreign.push(foreignText(object));
  }
  unnamed.reverse();
  const freedBytes = [...packChanges.map((change) => change.freedBytes), ...unnamed.map((o) => o.sizeBytes)];
  return {
    packs: packChanges,
    segments: unnamed,
    problems: [...planner.problems, ...foreign],
    freedBytes: freedBytes.reduce((sum, bytes) => sum + bytes, 0),
  };
}

function nothing(problems: readonly string[]): SweepPlan {
  return { packs: [], segments: [], problems, freedBytes: 0 };
}

/** What the records of a frame need. */
interface FrameNeeds {
  readonly lengthBytes: number;
  /** Without those of a patch frame that are blank. */
  readonly recordCount: number;
  /** Base of each record; undefined when no record has one. */
  readonly baseRefs?: Float64Array;
  /** Sources of a patch frame, which all its records need alike. */
  readonly sources?: Float64Array;
  /** Length of each record before compression, 0 of a blank one; undefined for a blob and for a patch frame. */
  readonly recordBytes?: Uint16Array;
}

class Planner {
  readonly problems: string[] = [];
  /** What is in the way of packs and is none of this chain. */
  readonly foreign: string[] = [];
  readonly #source: SweepSource;
  readonly #manifests: readonly Manifest[];
  readonly #options: SweepPlanOptions;
  readonly #reader: PackReader;
  readonly #needed: NeededRecords;
  /** Packs up to this number stay as they are: what is needed of them is not known. */
  #floor = 0;

  constructor(source: SweepSource, manifests: readonly Manifest[], options: SweepPlanOptions) {
    const { backend, repositoryId, keys } = source;
    this.#source = source;
    this.#manifests = manifests;
    this.#options = options;
    this.#reader = new PackReader(backend, keys, ownerTag(repositoryId, keys.chain));
    this.#needed = new NeededRecords(this.#reader, (seq, message) => this.#keepUpTo(seq, message));
  }

  /** @param objects ascending */
  async packs(objects: readonly StoredObject[]): Promise<readonly PackChange[]> {
    await this.#addRoots();
    const kinds = new Map(this.#manifests.flatMap(({ packs, kind }) => packs.map(({ seq }) => [seq, kind])));
    const totalBytes = objects.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    let doneBytes = 0;
    const changes: PackChange[] = [];
    for (const object of [...objects].reverse()) {
      const seq = seqOfKey(object.key);
      const change = seq > this.#floor ? await this.#pack(object, kinds.get(seq)) : undefined;
      const isHighestMark =
        object === objects.at(-1) && (await isMark(this.#source.backend, object, this.#options));
      if (change !== undefined && !isHighestMark) changes.push(change);
      doneBytes += object.sizeBytes;
      this.#options.onProgress?.(doneBytes, totalBytes);
    }
    return changes;
  }

  async #addRoots(): Promise<void> {
    const { backend, repositoryId, keys } = this.#source;
    const from = { backend, repositoryId, chain: keys.chain };
    try {
      for await (const refs of effectiveRefs(from, this.#manifests, this.#options))
        await this.#needed.add(refs, this.#options);
    } catch (error) {
      this.#keepUpTo(Number.MAX_SAFE_INTEGER, asDamagedObject('', error).message);
    }
    for (const { deviceState } of this.#manifests)
      if (deviceState !== null)
        await this.#needed.addBlob(deviceState.pack, deviceState.frame, this.#options);
  }

  /** @param listedBy kind of the checkpoint that lists it */
  async #pack(object: StoredObject, listedBy: Manifest['kind'] | undefined): Promise<PackChange | undefined> {
    const seq = seqOfKey(object.key);
    const needed = this.#needed.of(seq);
    if (listedBy === undefined && needed === undefined) {
      const { backend, repositoryId, keys } = this.#source;
      const owner = ownerTag(repositoryId, keys.chain);
      if (await isOfChain(backend, object, 'pack', owner, this.#options))
        return { object, freedBytes: object.sizeBytes };
      this.foreign.push(foreignText(object));
      return undefined;
    }
    let frames: readonly FrameNeeds[];
    try {
      // The map that a base begins with is empty: of what it differs from, only sources can lie in packs of
      // others.
      frames = await this.#read(seq, listedBy === 'base');
    } catch (error) {
      this.#keepUpTo(seq, asDamagedObject(object.key, error).message);
      return undefined;
    }
    if (listedBy === undefined && needed !== undefined) {
      const freedBytes = await this.#addNeeded(frames, needed);
      if (freedBytes > object.sizeBytes * (this.#options.thinAbove ?? THIN_ABOVE))
        return { object, thinTo: needed, freedBytes };
    }
    for (const { baseRefs, sources } of frames) {
      if (baseRefs !== undefined) await this.#needed.add(baseRefs, this.#options);
      if (sources !== undefined) await this.#needed.add(sources, this.#options);
    }
    return undefined;
  }

  /** Enters what the needed records need. @returns what thinning would free */
  async #addNeeded(frames: readonly FrameNeeds[], needed: NeededOfPack): Promise<number> {
    let freedBytes = 0;
    for (let frame = frames.length - 1; frame >= 0; frame--) {
      const { lengthBytes, recordCount, baseRefs, sources, recordBytes } = frames[frame]!;
      const size = lengthBytes + DIRECTORY_ENTRY_BYTES;
      if (!needed.hasAny(frame)) {
        freedBytes += Math.max(0, size - BLANK_FRAME_BYTES);
        continue;
      }
      if (sources !== undefined) {
        await this.#needed.add(sources, this.#options);
        const keptCount = needed.countOf(frame);
        freedBytes += (lengthBytes - FRAME_HEADER_BYTES) * (1 - keptCount / recordCount);
      }
      const kept = baseRefs?.filter((_, record) => needed.has(frame, record));
      if (kept !== undefined) await this.#needed.add(kept, this.#options);
      if (recordBytes === undefined) continue;
      let keptBytes = 0;
      let allBytes = 0;
      recordBytes.forEach((bytes, record) => {
        allBytes += bytes;
        if (needed.has(frame, record)) keptBytes += bytes;
      });
      if (allBytes > 0) freedBytes += (lengthBytes - FRAME_HEADER_BYTES) * (1 - keptBytes / allBytes);
    }
    return Math.floor(freedBytes);
  }

  async #read(seq: number, onlyPatches: boolean): Promise<readonly FrameNeeds[]> {
    const pack = await this.#reader.open(seq, this.#options);
    const frames: FrameNeeds[] = [];
    const numbers = [...pack.frames.keys()].filter(
      (frame) => !onlyPatches || pack.frames[frame]!.kind === FRAME_KIND_PATCH,
    );
    for await (const stored of this.#reader.frames(seq, numbers, this.#options)) {
      const { lengthBytes, kind, recordCount } = stored.entry;
      const own = frameKey(seq, stored.frame);
      if (kind === FRAME_KIND_BLOB) frames.push({ lengthBytes, recordCount });
      else if (kind === FRAME_KIND_PATCH) {
        const { sources, blanks } = readPatch(stored.bytes, seq, stored);
        frames.push({ lengthBytes, recordCount: recordCount - blanks.length, sources });
      } else {
        const records = await decodeFrameAsync(stored.bytes, stored);
        const { count, baseRefs, controlOffsets, dataOffsets } = records;
        const recordBytes = Uint16Array.from({ length: count }, (_, i) => {
          // It was given up before: nothing is left of it to be freed.
          if (isBlankRecord(records, i)) return 0;
          const control = controlOffsets[i + 1]! - controlOffsets[i]!;
          return control + dataOffsets[i + 1]! - dataOffsets[i]! + COLUMN_BYTES;
        });
        if (baseRefs.some((base) => base !== ZERO_REF && frameKeyOfRef(base) >= own))
          throw damaged(stored.key, 'the base does not lie before the record', { frame: stored.frame });
        const hasBases = baseRefs.some((base) => base !== ZERO_REF);
        frames.push({ lengthBytes, recordCount, recordBytes, ...(hasBases ? { baseRefs } : {}) });
      }
    }
    return frames;
  }

  #keepUpTo(seq: number, message: string): void {
    this.#floor = Math.max(this.#floor, seq);
    if (!this.problems.includes(message)) this.problems.push(message);
  }
}
