/** The right to write to one chain, held by its lock. */

import { randomBytes } from 'node:crypto';

import { CheckpointError } from '../errors.js';
import type { MemoryLayout } from '../hypervisor/memory-layout.js';
import type { VmIdentity } from '../hypervisor/vm.js';
import type { StorageBackend } from '../storage/backend.js';
import type { Calendar } from './forget/calendar.js';
import { ChainKeys, chainKey, ownerTag, seqOfKey } from '../format/chain-keys.js';
import type { ChainLock } from './chain-lock.js';
import { ChainReader, type ChainReaderOptions } from './read/chain-reader.js';
import { CheckpointWriter, type WritePoint } from './write/checkpoint-writer.js';
import type { DamagedObject } from '../records/damage.js';
import { forgetHeld, type ForgetOptions, type ForgetResult } from './forget/forget.js';
import type { KeepPolicy } from './forget/keep-policy.js';
import { loadMap } from './read/load-map.js';
import { loadManifests } from './read/manifest-store.js';
import type { CheckpointKind, Manifest } from '../format/manifest.js';
import { PageMap } from './read/page-map.js';
import { MAX_PACK_SEQ, ZERO_REF } from '../format/record-ref.js';
import { keepReserve, takeLock } from './reserve.js';
import { claimVmRecord } from './vm-record.js';

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
  /** Size at which a pack is closed and another begun; default 1 GiB. */
  readonly packTargetBytes?: number;
  /** Regroup scattered records where it is due, read through this reader of the chain; default: do not. */
  readonly regroupFrom?: ChainReader | undefined;
}

export class ChainWriter {
  readonly #backend: StorageBackend;
  readonly #repositoryId: string;
  readonly #keys: ChainKeys;
  readonly #lock: ChainLock;
  readonly #signal: AbortSignal | undefined;
  #latest: Manifest | null;
  /** Bytes that each increment added, oldest first; checkpoints that cannot be read are left out. */
  readonly #stored: number[];
  /** Highest sequence numbers in use, by this writer or anything found in the chain, orphans included. */
  readonly #last: { pack: number; index: number; checkpoint: number };
  #active: CheckpointWriter | undefined;
  #reserve: 'all' | 'some' | 'none';

  private constructor(
    readonly vmName: string,
    /** Manifests that could not be read. The newest readable one is `latest`. */
    readonly damaged: readonly DamagedObject[],
    parts: {
      readonly backend: StorageBackend;
      readonly repositoryId: string;
      readonly keys: ChainKeys;
      readonly lock: ChainLock;
      readonly manifests: readonly Manifest[];
      readonly last: { pack: number; index: number; checkpoint: number };
      readonly reserve: 'all' | 'some' | 'none';
      readonly signal: AbortSignal | undefined;
    },
  ) {
    this.#backend = parts.backend;
    this.#repositoryId = parts.repositoryId;
    this.#keys = parts.keys;
    this.#lock = parts.lock;
    this.#signal = parts.signal;
    this.#latest = parts.manifests.at(-1) ?? null;
    this.#stored = parts.manifests.flatMap(storedByIncrement);
    this.#last = parts.last;
    this.#reserve = parts.reserve;
  }

  /** See `Repository.openChainWriter`. */
  static async open(
    backend: StorageBackend,
    repositoryId: string,
    vmName: string,
    identity: VmIdentity,
    signal: AbortSignal | undefined,
  ): Promise<ChainWriter> {
    const keys = new ChainKeys(chainKey(vmName));
    const options = { signal };
    const lock = await takeLock(backend, keys, options);
    try {
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
      const parts = { backend, repositoryId, keys, lock, manifests, last, reserve, signal };
      return new ChainWriter(vmName, damaged, parts);
    } catch (error) {
      await lock.release().catch(() => undefined);
      throw error;
    }
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
    return loadMap(this.#backend, this.#repositoryId, manifest, { signal: this.#signal });
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
    if (map.changedPages().length > 0)
      throw new RangeError('the map has changes that belong to no checkpoint');
    if (parent === null && map.refs.some((ref) => ref !== ZERO_REF))
      throw new RangeError('the map of a base is empty');
    const writer = new CheckpointWriter(
      { ...options, map, level: options.level ?? DEFAULT_LEVEL },
      {
        backend: this.#backend,
        repositoryId: this.#repositoryId,
        keys: this.#keys,
        owner: ownerTag(this.#repositoryId, this.chain),
        vmName: this.vmName,
        id: randomBytes(8).toString('hex'),
        seq: ++this.#last.checkpoint,
        signal: this.#signal,
        nextPackSeq: () => this.#nextPackSeq(),
        nextIndexSeq: () => ++this.#last.index,
        storedLately: (count) => this.#stored.slice(-count),
        checkLock: () => this.#lock.mustBeHeld(this.chain, { signal: this.#signal }),
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
   * Forgets what a policy does not keep; the newest checkpoint stays, and so does `latest`, which is an older
   * one when a commit was uncertain. Between checkpoints. References to records of these, and of others that
   * are kept, stay good. See `forget`.
   */
  async forget(
    policy: KeepPolicy,
    calendar: Calendar,
    options: Omit<ForgetOptions, 'dryRun' | 'inUse'> = {},
  ): Promise<ForgetResult> {
    if (this.#active !== undefined) throw new TypeError('a checkpoint of this chain is being written');
    const source = { backend: this.#backend, repositoryId: this.#repositoryId, keys: this.#keys };
    const call = { signal: options.signal };
    const checkLock = (): Promise<void> => this.#lock.mustBeHeld(this.chain, call);
    const inUse = this.#latest?.id;
    const result = await forgetHeld(source, { policy, calendar }, checkLock, { ...options, inUse });
    this.#reserve = await keepReserve(this.#backend, this.#keys, call);
    return result;
  }

  /**
   * Aborts what is not committed and gives the lock back.
   * @throws what the backend throws when the lock cannot be removed
   */
  async close(): Promise<void> {
    await this.#active?.abort();
    await this.#lock.release();
    if (this.#reserve !== 'all') await keepReserve(this.#backend, this.#keys, {});
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

function storedByIncrement({ kind, storedBytes }: Manifest): readonly number[] {
  return kind === 'base' ? [] : [storedBytes];
}
