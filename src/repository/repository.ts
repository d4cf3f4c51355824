/** A repository of checkpoints, many VMs in one storage backend. Owns the format of docs/format.md. */

import { randomUUID } from 'node:crypto';

import { CheckpointError, isCheckpointError } from '../errors.js';
import type { VmIdentity } from '../hypervisor/vm.js';
import type { CallOptions, StorageBackend, StoredObject } from '../storage/backend.js';
import { SettledBackend } from '../storage/settled-backend.js';
import { CHAINS_PREFIX, ChainKeys, chainKey, chainOfKey, CONFIG_KEY, idOfKey } from '../format/chain-keys.js';
import type { ChainReaderOptions } from './read/chain-reader.js';
import { ChainWriter, type ChainWriterOptions } from './chain-writer.js';
import { CheckpointReader } from './read/checkpoint-reader.js';
import { asDamagedObject, damaged, type DamagedObject } from '../records/damage.js';
import { checkVersion, FORMAT_NAME, FORMAT_VERSION } from '../format/format-version.js';
import { checkpointGone, orGone } from './read/gone.js';
import { JsonFields } from '../records/json-fields.js';
import { unlockChain, type UnlockOptions } from './locks/unlock.js';
import { loadMap } from './read/load-map.js';
import { loadSealed } from './read/load-sealed.js';
import { loadManifest, loadManifests, type CheckpointList } from './read/manifest-store.js';
import type { Manifest } from '../format/manifest.js';
import type { PageMap } from './read/page-map.js';
import { openSealedJson, sealJson } from '../format/sealed-json.js';
import type { SweepSource } from './forget/sweep-plan.js';
import { loadVmRecord, type VmRecord } from './vm-record.js';

export interface ChainInfo {
  /** Folder name; also accepted wherever a chain is asked for. */
  readonly chain: string;
  /** Null when the `vm` object is damaged; see `problem`. */
  readonly vm: VmRecord | null;
  readonly problem: DamagedObject | null;
  /** Objects in the place of manifests, readable or not. */
  readonly checkpointCount: number;
  /** Length of all objects of the chain. */
  readonly sizeBytes: number;
  readonly isLocked: boolean;
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
const LATEST = 'latest';
/** Names of others that a message has. */
const NAMED_FOREIGN = 5;

export class Repository {
  private constructor(
    /** Settled: a call that failed had no effect, unless it says STORAGE_UNCERTAIN. */
    readonly backend: StorageBackend,
    /** UUID. */
    readonly id: string,
    /** ISO 8601. */
    readonly created: string,
  ) {}

  /**
   * Makes an empty repository where there is nothing, or what an `init` left that was cut off.
   * @throws REPO_EXISTS, REPO_NOT_EMPTY naming what others have put there, and what the backend throws
   */
  static async init(given: StorageBackend, options: CallOptions = {}): Promise<Repository> {
    const backend = SettledBackend.of(given);
    const { location } = backend.properties;
    const exists = (cause?: unknown): CheckpointError =>
      new CheckpointError('REPO_EXISTS', `there is a repository in ${location} already`, { cause });
    const present = await topNames(backend, options);
    const foreign = (await backend.foreignNames?.(present, options)) ?? [];
    if (present.length > 0 && (foreign.length === 0 || (await isRepository(backend, options))))
      throw exists();
    if (foreign.length > 0) throw notEmpty(location, foreign);
    const id = randomUUID();
    const created = new Date().toISOString();
    const config = { format: FORMAT_NAME, version: FORMAT_VERSION, requires: [], id, created };
    try {
      await backend.save(CONFIG_KEY, sealJson(config), options);
    } catch (error) {
      throw isCheckpointError(error, 'STORAGE_EXISTS') ? exists(error) : error;
    }
    return new Repository(backend, id, created);
  }

  /** @throws REPO_NOT_FOUND, REPO_VERSION, REPO_DAMAGED, and what the backend throws */
  static async open(given: StorageBackend, options: CallOptions = {}): Promise<Repository> {
    const backend = SettledBackend.of(given);
    let bytes: Uint8Array;
    try {
      bytes = await loadSealed(backend, CONFIG_KEY, options);
    } catch (error) {
      if (!isCheckpointError(error, 'STORAGE_NOT_FOUND')) throw error;
      if ((await backend.list(CHAINS_PREFIX, options)).length > 0) {
        throw damaged(CONFIG_KEY, 'missing, although there are checkpoints', {}, error);
      }
      throw new CheckpointError(
        'REPO_NOT_FOUND',
        `there is no repository in ${backend.properties.location}`,
        {
          cause: error,
          hint: 'make one with "cairn init"',
        },
      );
    }
    const json = new JsonFields(CONFIG_KEY, openSealedJson(CONFIG_KEY, bytes));
    json.oneOf('format', [FORMAT_NAME]);
    checkVersion(CONFIG_KEY, json.count('version'), json.texts('requires'));
    return new Repository(backend, json.matching('id', UUID), json.text('created'));
  }

  /** All chains, by folder name. */
  async chains(options: CallOptions = {}): Promise<readonly ChainInfo[]> {
    const infos: ChainInfo[] = [];
    for (const [chain, objects] of await this.#objectsByChain(options)) {
      const keys = new ChainKeys(chain);
      let vm: VmRecord | null = null;
      let problem: DamagedObject | null = null;
      try {
        vm = await loadVmRecord(this.backend, keys, options);
      } catch (error) {
        problem = asDamagedObject(keys.vm, error);
      }
      infos.push({
        chain,
        vm,
        problem,
        checkpointCount: objects.filter(({ key }) => key.startsWith(keys.checkpoints)).length,
        sizeBytes: objects.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
        isLocked: objects.some(({ key }) => key.startsWith(keys.locks)),
      });
    }
    return infos;
  }

  /**
   * Checkpoints of one chain or of all, newest last within a chain. Damaged ones are reported beside the
   * others.
   * @param chain name of the VM, or folder name
   */
  async checkpoints(chain?: string, options: CallOptions = {}): Promise<CheckpointList> {
    const manifests: Manifest[] = [];
    const damagedObjects: DamagedObject[] = [];
    for (const keys of await this.#chainsFor(chain, options)) {
      const list = await loadManifests(this.backend, keys, options);
      manifests.push(...list.manifests);
      damagedObjects.push(...list.damaged);
    }
    return { manifests, damaged: damagedObjects };
  }

  /**
   * Finds one checkpoint, by the first digits of its id (at least 4) or as `latest` of its chain.
   * @throws CHECKPOINT_NOT_FOUND, CHECKPOINT_AMBIGUOUS, CHECKPOINT_GONE, REPO_DAMAGED, REPO_VERSION, and what
   *   the backend throws
   */
  async find(prefixOrLatest: string, chain?: string, options: CallOptions = {}): Promise<Manifest> {
    const { keys, object } = await this.locate(prefixOrLatest, chain, options);
    try {
      return await loadManifest(this.backend, keys, object, options);
    } catch (error) {
      throw isCheckpointError(error, 'STORAGE_NOT_FOUND') ? checkpointGone(object.key, error) : error;
    }
  }

  /**
   * Where the manifest of a checkpoint lies, whether it can be read or not; otherwise as `find`.
   * @throws CHECKPOINT_NOT_FOUND, CHECKPOINT_AMBIGUOUS, and what the backend throws
   */
  async locate(
    prefixOrLatest: string,
    chain?: string,
    options: CallOptions = {},
  ): Promise<{ readonly keys: ChainKeys; readonly object: StoredObject }> {
    const isLatest = prefixOrLatest === LATEST;
    if (!isLatest && !/^[0-9a-f]{4,16}$/.test(prefixOrLatest)) {
      throw new CheckpointError('CHECKPOINT_NOT_FOUND', `"${prefixOrLatest}" is not the id of a checkpoint`, {
        hint: 'give at least 4 of the 16 hexadecimal digits, or "latest"',
      });
    }
    const found: { readonly keys: ChainKeys; readonly object: StoredObject }[] = [];
    for (const keys of await this.#chainsFor(chain, options)) {
      const objects = await this.backend.list(keys.checkpoints, options);
      const matching = isLatest
        ? objects.slice(-1)
        : objects.filter(({ key }) => idOfKey(key)?.startsWith(prefixOrLatest));
      found.push(...matching.map((object) => ({ keys, object })));
    }
    const [first] = found;
    if (first === undefined) {
      throw new CheckpointError(
        'CHECKPOINT_NOT_FOUND',
        `no checkpoint ${prefixOrLatest}${chain === undefined ? '' : ` of ${chain}`}`,
        {
          hint: 'see "cairn list"',
        },
      );
    }
    if (found.length > 1) {
      throw new CheckpointError(
        'CHECKPOINT_AMBIGUOUS',
        `${found.length} checkpoints match ${prefixOrLatest}`,
        {
          hint: isLatest ? 'say of which VM' : 'give more digits of the id',
          detail: { keys: found.map(({ object }) => object.key) },
        },
      );
    }
    return first;
  }

  /**
   * Takes the lock of a chain and makes sure that the chain is of this VM; the first caller creates it.
   * @throws REPO_LOCKED naming the owner, CHAIN_WRONG_VM, REPO_DAMAGED, REPO_VERSION, and what the backend
   *   throws
   */
  openChainWriter(
    name: string,
    identity: VmIdentity,
    options: ChainWriterOptions = {},
  ): Promise<ChainWriter> {
    return ChainWriter.open(this.backend, this.id, name, identity, options);
  }

  /**
   * Removes the locks of a chain whose owners are gone; with `force` all of them.
   * @returns keys of the locks removed
   * @throws REPO_LOCKED naming the owners of those that stay
   */
  async unlock(chain: string, options: UnlockOptions = {}): Promise<readonly string[]> {
    const removed: string[] = [];
    for (const keys of await this.#chainsFor(chain, options))
      removed.push(...(await unlockChain(this.backend, keys, options)));
    return removed;
  }

  /** Reads one checkpoint back. */
  reader(manifest: Manifest, options: ChainReaderOptions = {}): CheckpointReader {
    return new CheckpointReader(this.backend, this.id, manifest, options);
  }

  /** The committed page map of a checkpoint; caller owns it. @throws REPO_DAMAGED, CHECKPOINT_GONE */
  loadMap(manifest: Manifest, options: CallOptions = {}): Promise<PageMap> {
    return orGone(this.backend, manifest, options, () => loadMap(this.backend, this.id, manifest, options));
  }

  /** The chains that go by this name, or all of them, as `forget` wants them. */
  async sweepSources(chain?: string, options: CallOptions = {}): Promise<readonly SweepSource[]> {
    const all = await this.#chainsFor(chain, options);
    return all.map((keys) => ({ backend: this.backend, repositoryId: this.id, keys }));
  }

  close(): Promise<void> {
    return this.backend.close();
  }

  async #objectsByChain(options: CallOptions): Promise<Map<string, StoredObject[]>> {
    const byChain = new Map<string, StoredObject[]>();
    for (const object of await this.backend.list(CHAINS_PREFIX, options)) {
      const chain = chainOfKey(object.key);
      if (chain === undefined) continue;
      const objects = byChain.get(chain);
      if (objects === undefined) byChain.set(chain, [object]);
      else objects.push(object);
    }
    return byChain;
  }

  /** All chains, or the one that goes by this name: a VM's name first, then a folder's. */
  async #chainsFor(chain: string | undefined, options: CallOptions): Promise<readonly ChainKeys[]> {
    const known = [...(await this.#objectsByChain(options)).keys()];
    if (chain === undefined) return known.map((name) => new ChainKeys(name));
    const wanted = [chainKey(chain), chain].find((name) => known.includes(name));
    return wanted === undefined ? [] : [new ChainKeys(wanted)];
  }
}

/** What a repository has at its top, as far as it is there. */
async function topNames(backend: StorageBackend, options: CallOptions): Promise<readonly string[]> {
  const has = async (prefix: string): Promise<boolean> => (await backend.list(prefix, options)).length > 0;
  const names = (await backend.list(CONFIG_KEY, options)).some(({ key }) => key === CONFIG_KEY)
    ? [CONFIG_KEY]
    : [];
  return (await has(CHAINS_PREFIX)) ? [...names, CHAINS_PREFIX.slice(0, -1)] : names;
}

async function isRepository(backend: StorageBackend, options: CallOptions): Promise<boolean> {
  try {
    await Repository.open(backend, options);
    return true;
  } catch (error) {
    if (isCheckpointError(error, 'REPO_DAMAGED')) return false;
    throw error;
  }
}

function notEmpty(location: string, foreign: readonly string[]): CheckpointError {
  const named = foreign.slice(0, NAMED_FOREIGN).map((name) => JSON.stringify(name));
  const more = foreign.length - named.length;
  const list = more > 0 ? `${named.join(', ')} and ${more} more` : named.join(', ');
  return new CheckpointError('REPO_NOT_EMPTY', `${location} holds what is not of a repository: ${list}`, {
    hint: 'name an empty folder, or one that does not exist yet: it is made',
    detail: { location, names: foreign.slice(0, 100) },
  });
}
