/** The right to write to one chain, held by its lock. */

import { randomBytes } from 'node:crypto';

import { CheckpointError } from '../errors.js';
import { sameLayout, type MemoryLayout } from '../hypervisor/memory-layout.js';
import type { VmIdentity } from '../hypervisor/vm.js';
import type { CallOptions, StorageBackend } from '../storage/backend.js';
import type { Calendar } from './forget/calendar.js';
import { ChainKeys, chainKey, ownerTag, seqOfKey } from '../format/chain-keys.js';
import type { ChainLock, LockOptions } from './locks/chain-lock.js';
import { removeUnfinished } from './locks/unfinished.js';
import { ChainReader, type ChainReaderOptions } from './read/chain-reader.js';
import { CheckpointWriter, type WritePoint } from './write/checkpoint-writer.js';
import type { DamagedObject } from '../records/damage.js';
import { forgetHeld, type ForgetOptions, type ForgetResult } from './forget/forget.js';
import type { KeepPolicy } from './forget/keep-policy.js';
import { loadMap } from './read/load-map.js';
import { loadManifests } from './read/manifest-store.js';
import type { CheckpointKind, Manifest } from '../format/manifest.js';
import { PageMap } from './read/page-map.js';
import { MAX_PACK_SEQ } from '../format/record-ref.js';
import { keepReserve, takeLock } from './reserve.js';
import { freeBytesOf, LAST_INCREMENTS, missingBytes, packTargetIn } from './room.js';
import { claimVmRecord } from './vm-record.js';
import { PackWriter } from './write/pack-writer.js';
import { RegroupAhead, type RegroupAheadRequest } from './write/regroup-ahead.js';

/** zstd level of index and device state unless the caller says otherwise; zstd's own default. */
const DEFAULT_LEVEL = 3;

export interface BeginOptions {
  readonly kind: CheckpointKind;
  /** The checkpoint of this chain that the new one is held against; null for a base. */
  readonly parent: Manifest | null;
  readonly layout: MemoryLayout;
  /**
   * The parent's map in `layout`; loaded when not given. The writer changes it, and commits or rolls back.
   */
  readonly map?: PageMap;
  /** zstd level for device state and index, 0 = off. */
  readonly level?: number;
  readonly onPoint?: (point: WritePoint) => void;
  /** Size at which a pack is closed and another begun; default 1 GiB, less in little room. */
  readonly packTargetBytes?: number;
  /** Regroup scattered records where it is due, read through this reader of the chain; default: do not. */
  readonly regroupFrom?: ChainReader | undefined;
}

export interface ChainWriterOptions extends LockOptions {
  /** Ends waiting for the lock, now and when it is to be taken again; default: `signal`. */
  readonly waitSignal?: AbortSignal | undefined;
}

/** What a chain holds when it is opened under its lock. */
interface ChainContent {
  readonly damaged: readonly DamagedObject[];
  readonly latest: Manifest | null;
  /** Bytes that each increment added, oldest first; checkpoints that cannot be read are left out. */
  readonly stored: number[];
  /** Highest sequence numbers in use, by this writer or anything found in the chain, orphans included. */
  readonly last: { pack: number; index: number; checkpoint: number };
  /** How much of the reserve is there. */
  readonly reserve: 'all' | 'some' | 'none';
}

export class ChainWriter {
  readonly #backend: StorageBackend;
  readonly #repositoryId: string;
  readonly #keys: ChainKeys;
  readonly #identity: VmIdentity;
  readonly #options: ChainWriterOptions;
  #lock: ChainLock;
  #damaged: readonly DamagedObject[];
  #latest: Manifest | null;
  #stored: number[];
  #last: ChainContent['last'];
  #active: CheckpointWriter | undefined;
  #ahead: RegroupAhead | undefined;
  #reserve: ChainContent['reserve'];

  private constructor(
    readonly vmName: string,
    parts: {
      readonly backend: StorageBackend;
      readonly repositoryId: string;
      readonly keys: ChainKeys;
      readonly identity: VmIdentity;
      readonly options: ChainWriterOptions;
      readonly lock: ChainLock;
      readonly content: ChainContent;
    },
  ) {
    this.#backend = parts.backend;
    this.#repositoryId = parts.repositoryId;
    this.#keys = parts.keys;
    this.#identity = parts.identity;
    this.#options = parts.options;
    this.#lock = parts.lock;
    const { damaged, latest, stored, last, reserve } = parts.content;
    this.#damaged = damaged;
    this.#latest = latest;
    this.#stored = stored;
    this.#last = last;
    this.#reserve = reserve;
  }

  /** See `Repository.openChainWriter`. */
  static async open(
    backend: StorageBackend,
    repositoryId: string,
    vmName: string,
    identity: VmIdentity,
    options: ChainWriterOptions,
  ): Promise<ChainWriter> {
    const keys = new ChainKeys(chainKey(vmName));
    const { lock, content } = await takeChain(backend, keys, vmName, identity, options);
    return new ChainWriter(vmName, { backend, repositoryId, keys, identity, options, lock, content });
  }

  /** Manifests that could not be read. The newest readable one is `latest`. */
  get damaged(): readonly DamagedObject[] {
    return this.#damaged;
  }

  /**
   * Between checkpoints: makes sure that the chain is still this writer's, and takes it again when somebody
   * has removed the lock. `latest` may be another one then.
   * @returns true when it had to be taken again
   * @throws REPO_LOCKED while somebody else has it, and what `open` throws; the next call tries again
   */
  async holdAgain(): Promise<boolean> {
    if (await this.#lock.isHeld(this.#call)) return false;
    if (this.#active !== undefined) throw new TypeError('a checkpoint of this chain is being written');
    await this.#dropAhead();
    await this.#lock.release();
    const { lock, content } = await takeChain(
      this.#backend,
      this.#keys,
      this.vmName,
      this.#identity,
      this.#options,
    );
    this.#lock = lock;
    this.#damaged = content.damaged;
    this.#latest = content.latest;
    this.#stored = content.stored;
    this.#last = content.last;
    this.#reserve = content.reserve;
    return true;
  }

  /** @throws REPO_LOCKED when the lock is not held any more */
  mustBeHeld(): Promise<void> {
    return this.#lock.mustBeHeld(this.chain, this.#call);
  }

  /** Folder name of the chain. */
  get chain(): string {
    return this.#keys.chain;
  }

  /** The newest committed checkpoint of the chain that can be read. */
  get latest(): Manifest | null {
    return this.#latest;
  }

  /** The committed map of a checkpoint of this chain; caller owns it. @throws REPO_DAMAGED */
  loadMap(manifest: Manifest): Promise<PageMap> {
    return loadMap(this.#backend, this.#repositoryId, manifest, this.#call);
  }

  /**
   * Bytes by which the room that is left may fall short of the next increment, going by the last ones.
   * @returns 0 when there is enough, and where the storage does not say how much it has
   */
  async missingBytes(): Promise<number> {
    return missingBytes(await freeBytesOf(this.#backend, this.#call), this.#stored.slice(-LAST_INCREMENTS));
  }

  /** Reads records of this chain, those included that are committed later on. */
  reader(options: ChainReaderOptions = {}): ChainReader {
    return new ChainReader(this.#backend, this.#repositoryId, this.chain, options);
  }

  /**
   * Begins a checkpoint; one at a time.
   * @throws STORAGE_FULL when not even the reserve has room; RangeError when kind, parent, layout and map do not fit together; REPO_DAMAGED when the map is to
   *   be loaded
   */
  async begin(options: BeginOptions): Promise<CheckpointWriter> {
    if (this.#active !== undefined) throw new TypeError('another checkpoint of this chain is being written');
    // What is committed into the last of the reserve could not be freed any more.
    if (this.#reserve === 'none') {
      throw new CheckpointError('STORAGE_FULL', `chain ${this.chain} has no room left in its storage`, {
        hint: 'free it with "cairn forget", or make room beside it',
      });
    }
    const { kind, parent, layout } = options;
    if ((kind === 'base') !== (parent === null))
      throw new RangeError('a base has no parent, an increment has one');
    if (parent !== null && parent.chain !== this.chain)
      throw new RangeError('the parent is of another chain');
    const map = options.map ?? (await this.#mapFor(parent, layout));
    if (map.pageSpan !== layout.pageSpan) throw new RangeError('the map does not fit the layout');
    if (map.changedCount > 0) throw new RangeError('the map has changes that belong to no checkpoint');
    if (parent === null && map.countRecords() > 0) throw new RangeError('the map of a base is empty');
    const packTargetBytes =
      options.packTargetBytes ??
      this.#backend.properties.packBytes ??
      packTargetIn(await freeBytesOf(this.#backend, this.#call));
    const regroupedAhead = await this.#takeAhead(parent, layout);
    const writer = new CheckpointWriter(
      { ...options, map, packTargetBytes, level: options.level ?? DEFAULT_LEVEL, regroupedAhead },
      {
        backend: this.#backend,
        repositoryId: this.#repositoryId,
        keys: this.#keys,
        owner: ownerTag(this.#repositoryId, this.chain),
        vmName: this.vmName,
        id: randomBytes(8).toString('hex'),
        seq: ++this.#last.checkpoint,
        signal: this.#options.signal,
        newPack: () => this.#newPack(),
        nextIndexSeq: () => ++this.#last.index,
        storedLately: (count) => this.#stored.slice(-count),
        checkLock: () => this.mustBeHeld(),
        done: (manifest) => {
          this.#active = undefined;
          if (manifest === null) return;
          this.#latest = manifest;
          this.#stored.push(...storedByIncrement(manifest));
        },
      },
    );
    this.#active = writer;
    return writer;
  }

  /**
   * Between checkpoints: regroups ahead what the next checkpoint would regroup in its commit. Ended early, or failed, it has
   * cost nothing but time.
   * @returns pages that are ready for the next checkpoint
   * @throws REPO_LOCKED, REPO_DAMAGED when an old record cannot be read, and what the backend throws
   */
  async regroupAhead(request: Omit<RegroupAheadRequest, 'parent'>): Promise<number> {
    if (this.#active !== undefined) throw new TypeError('a checkpoint of this chain is being written');
    const parent = this.#latest;
    if (this.#ahead !== undefined || parent === null || request.until.aborted) return 0;
    await this.mustBeHeld();
    const { map } = request;
    const source = {
      ...{ backend: this.#backend, repositoryId: this.#repositoryId },
      ...{ chain: this.chain, pageSpan: map.pageSpan },
    };
    const storedLately = (count: number): readonly number[] => this.#stored.slice(-count);
    const deps = { source, newPack: () => this.#newPack(), storedLately };
    this.#ahead = await RegroupAhead.make({ ...request, parent }, deps, this.#call);
    return this.#ahead?.pageCount ?? 0;
  }

  /**
   * Forgets what a policy does not keep; the newest checkpoint stays, and so does `latest`, which is an older
   * one when a commit was uncertain. Between checkpoints. References to records of these, and of others that
   * are kept, stay good. See `forget`.
   */
  async forget(
    policy: KeepPolicy,
    calendar: Calendar,
    options: Omit<ForgetOptions, 'dryRun' | 'inUse'> & { readonly keepMisdated?: boolean | undefined } = {},
  ): Promise<ForgetResult> {
    if (this.#active !== undefined) throw new TypeError('a checkpoint of this chain is being written');
    const source = { backend: this.#backend, repositoryId: this.#repositoryId, keys: this.#keys };
    const call = { signal: options.signal };
    const checkLock = (): Promise<void> => this.#lock.mustBeHeld(this.chain, call);
    const choice = { policy, calendar, keepMisdated: options.keepMisdated };
    const inUse = this.#latest?.id;
    const result = await forgetHeld(source, choice, checkLock, { ...options, inUse });
    this.#reserve = await keepReserve(this.#backend, this.#keys, call);
    return result;
  }

  /**
   * Aborts what is not committed and gives the lock back.
   * @throws what the backend throws when the lock cannot be removed
   */
  async close(): Promise<void> {
    await this.#active?.abort();
    await this.#dropAhead();
    await this.#lock.release();
    if (this.#reserve !== 'all') await keepReserve(this.#backend, this.#keys, {});
  }

  get #call(): CallOptions {
    return { signal: this.#options.signal };
  }

  /** @returns what was regrouped ahead of a checkpoint of this parent and layout; anything else is dropped */
  async #takeAhead(parent: Manifest | null, layout: MemoryLayout): Promise<RegroupAhead | undefined> {
    const ahead = this.#ahead;
    const isFitting =
      ahead?.parentId === parent?.id && ahead !== undefined && sameLayout(ahead.layout, layout);
    if (!isFitting) await this.#dropAhead();
    this.#ahead = undefined;
    return isFitting ? ahead : undefined;
  }

  async #dropAhead(): Promise<void> {
    await this.#ahead?.drop();
    this.#ahead = undefined;
  }

  #newPack(): PackWriter {
    const seq = this.#nextPackSeq();
    const owner = ownerTag(this.#repositoryId, this.chain);
    return new PackWriter(this.#keys.pack(seq), seq, owner, this.#backend, this.#call);
  }

  async #mapFor(parent: Manifest | null, layout: MemoryLayout): Promise<PageMap> {
    if (parent === null) return new PageMap(layout.pageSpan);
    return (await this.loadMap(parent)).remap(parent.layout, layout);
  }

  #nextPackSeq(): number {
    if (this.#last.pack >= MAX_PACK_SEQ) {
      throw new CheckpointError(
        'STORAGE_FULL',
        `chain ${this.chain} has used all ${MAX_PACK_SEQ} pack numbers`,
        {
          hint: 'start a new chain with --name',
        },
      );
    }
    return ++this.#last.pack;
  }
}

/** Takes the lock and looks what is there. @throws see `Repository.openChainWriter` */
async function takeChain(
  backend: StorageBackend,
  keys: ChainKeys,
  vmName: string,
  identity: VmIdentity,
  { signal, waitSignal, ...more }: ChainWriterOptions,
): Promise<{ readonly lock: ChainLock; readonly content: ChainContent }> {
  const options = { signal };
  const lock = await takeLock(backend, keys, { ...more, signal: waitSignal ?? signal });
  try {
    await removeUnfinished(backend, keys, options);
    await claimVmRecord(backend, keys, vmName, identity, options);
    const reserve = await keepReserve(backend, keys, options);
    const { manifests, damaged } = await loadManifests(backend, keys, options);
    const highest = async (prefix: string): Promise<number> =>
      (await backend.list(prefix, options)).reduce((max, { key }) => Math.max(max, seqOfKey(key)), 0);
    const last = {
      pack: await highest(keys.packs),
      index: await highest(keys.index),
      checkpoint: await highest(keys.checkpoints),
    };
    const stored = manifests.flatMap(storedByIncrement);
    return { lock, content: { damaged, latest: manifests.at(-1) ?? null, stored, last, reserve } };
  } catch (error) {
    await lock.release().catch(() => undefined);
    throw error;
  }
}

function storedByIncrement({ kind, storedBytes }: Manifest): readonly number[] {
  return kind === 'base' ? [] : [storedBytes];
}
