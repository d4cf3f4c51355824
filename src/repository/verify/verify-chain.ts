/**
 * Verifies one chain: its small records, every pack, every index segment against the records, every device
 * state.
 */

import { isCheckpointError } from '../../errors.js';
import type { MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { Kernels } from '../../kernels/kernels.js';
import { sharedKernels } from '../../kernels/shared-kernels.js';
import type { CallOptions, StorageBackend, StoredObject } from '../../storage/backend.js';
import type { ChainKeys } from '../../format/chain-keys.js';
import { seqOfKey } from '../../format/chain-keys.js';
import { decodeLock } from '../locks/lock-record.js';
import { ChainReader } from '../read/chain-reader.js';
import { CheckpointReader } from '../read/checkpoint-reader.js';
import { damaged, type DamagedObject } from '../../records/damage.js';
import { checkpointGone, isAbsent } from '../read/gone.js';
import { PageIndex } from '../read/page-index.js';
import { SegmentShelf } from '../read/segment-reader.js';
import { loadSealed } from '../read/load-sealed.js';
import { loadManifests } from '../read/manifest-store.js';
import { manifestKey, type Manifest, type PackEntry } from '../../format/manifest.js';
import { packOfRef, ZERO_REF } from '../../format/record-ref.js';
import { ProblemLog } from './problem-log.js';
import { BROKEN, type RecordTable } from './record-table.js';
import { verifyPack, verifyPacksAgain, type PackCheck } from './verify-pack.js';
import { verifyPages } from './verify-pages.js';
import { SegmentVerifier } from './verify-segments.js';
import { loadVmRecord } from '../vm-record.js';

/** For decoded slices of the index, of checkpoints that are gone through one after the other. */
const SHELF_BYTES = 16 << 20;

export interface ChainVerification {
  readonly checkpoints: number;
  readonly records: number;
  readonly orphans: readonly string[];
  /** Ids of the readable manifests whose pages or device state are damaged. */
  readonly affected: readonly string[];
}

export interface ChainVerifierDeps {
  readonly backend: StorageBackend;
  readonly repositoryId: string;
  readonly keys: ChainKeys;
  /** Everything that is stored below the chain. */
  readonly objects: readonly StoredObject[];
  readonly signal: AbortSignal | undefined;
  readonly onProblem: (problem: DamagedObject) => void;
  readonly onBytes: (sizeBytes: number) => void;
}

export class ChainVerifier {
  readonly #deps: ChainVerifierDeps;
  readonly #call: CallOptions;
  readonly #kernels: Kernels = sharedKernels();
  readonly #reader: ChainReader;
  readonly #tables = new Map<number, RecordTable>();
  readonly #layoutOfPack = new Map<number, MemoryLayout>();
  readonly #affected = new Set<string>();
  /** Packs whose turn has come. */
  readonly #begun = new Set<number>();
  /** Packs that segments refer to and that are not there; see `SegmentVerifier.checkUsed`. */
  readonly #missing = new Map<number, unknown>();
  readonly #problems: ProblemLog;
  readonly #segments: SegmentVerifier;

  constructor(deps: ChainVerifierDeps) {
    this.#deps = deps;
    this.#call = { signal: deps.signal };
    this.#reader = new ChainReader(deps.backend, deps.repositoryId, deps.keys.chain, {
      givesBlank: true,
    });
    this.#problems = new ProblemLog(deps.onProblem);
    this.#segments = new SegmentVerifier(
      { ...deps, problems: this.#problems, tables: this.#tables, layoutOfPack: this.#layoutOfPack },
      this.#call,
    );
  }

  /** @throws what is not about damage: INTERRUPTED, failures of the backend */
  async run(): Promise<ChainVerification> {
    const { backend, keys } = this.#deps;
    await this.#checkSmallRecords();
    const { manifests, damaged: unreadable } = await loadManifests(backend, keys, this.#call);
    for (const problem of unreadable) this.#problems.report(problem);
    for (const manifest of manifests) {
      this.#listPacks(manifest);
      this.#segments.list(manifest);
    }
    await this.#checkPacks(manifests, await this.#segments.read());
    await this.#checkPages();
    await this.#segments.compare();
    await this.#segments.checkUsed(manifests, this.#missing);
    for (const manifest of manifests) await this.#checkDeviceState(manifest);
    if (this.#problems.count > 0) {
      await this.#mustStillBeThere(manifests);
      await this.#findAffected(manifests);
    }
    let records = 0;
    for (const table of this.#tables.values()) records += table.pages.length;
    const orphans = this.#deps.objects.map(({ key }) => key).filter((key) => this.#isOrphan(key));
    return { checkpoints: manifests.length, records, orphans, affected: [...this.#affected] };
  }

  async #checkSmallRecords(): Promise<void> {
    const { backend, keys, objects, onBytes } = this.#deps;
    // A first writer has its lock before it makes the record: one that has just begun, or was cut off, left none.
    if (objects.some(({ key }) => !this.#isBeforeCheckpoints(key)))
      await this.#problems.attempt(keys.vm, () => loadVmRecord(backend, keys, this.#call));
    for (const { key } of objects.filter((object) => object.key.startsWith(keys.locks))) {
      await this.#problems.attempt(key, async () => {
        const bytes = await loadSealed(backend, key, this.#call).catch((error: unknown) => {
          // The lock was released since it was listed.
          if (isCheckpointError(error, 'STORAGE_NOT_FOUND')) return undefined;
          throw error;
        });
        if (bytes !== undefined) decodeLock(key, bytes);
      });
    }
    for (const { key, sizeBytes } of objects) {
      if (!key.startsWith(keys.packs) && !key.startsWith(keys.index)) onBytes(sizeBytes);
    }
  }

  #listPacks(manifest: Manifest): void {
    for (const { seq, directorySha256 } of manifest.packs) {
      if (this.#layoutOfPack.has(seq)) {
        const what = `pack ${seq} (${directorySha256}) is listed by an earlier checkpoint as well`;
        this.#problems.fail(manifestKey(manifest), what);
      }
      this.#layoutOfPack.set(seq, manifest.layout);
    }
  }

  async #checkPacks(manifests: readonly Manifest[], referred: ReadonlySet<number>): Promise<void> {
    const { keys, objects } = this.#deps;
    const listed = new Map(
      manifests.flatMap((manifest) => manifest.packs.map((pack) => [pack.seq, pack] as const)),
    );
    const present = new Set(objects.map(({ key }) => key));
    const all = [...new Set([...listed.keys(), ...referred])].sort((a, b) => a - b);
    for (const seq of all) {
      const key = keys.pack(seq);
      if (listed.has(seq) || present.has(key)) await this.#checkPack(seq, listed.get(seq));
      else this.#missing.set(seq, damaged(key, 'pack is missing'));
    }
  }

  async #checkPack(seq: number, entry?: PackEntry): Promise<void> {
    if (this.#begun.has(seq)) return;
    this.#begun.add(seq);
    await this.#problems.attempt(this.#deps.keys.pack(seq), async () => {
      const { packs } = this.#reader;
      const pack = await (entry === undefined
        ? packs.open(seq, this.#call)
        : packs.openListed(entry, this.#call));
      await verifyPack(pack, this.#packCheck(), this.#call);
    });
  }

  #packCheck(): PackCheck {
    return {
      packs: this.#reader.packs,
      tables: this.#tables,
      // Bases may lie in packs that nothing else leads to, once the checkpoints that wrote them are
      // forgotten.
      onBasePack: (seq) => this.#checkPack(seq),
      onProblem: (key, error) => this.#problems.reportError(key, error),
      // Half of the work; the pages are the other.
      onBytes: (sizeBytes) => this.#deps.onBytes(sizeBytes / 2),
    };
  }

  async #checkPages(): Promise<void> {
    const byNumber = new Map([...this.#tables].sort(([a], [b]) => a - b));
    const tables = [...byNumber.values()];
    const packBytes = sum(tables.flatMap(({ pack }) => pack.frames.map(({ lengthBytes }) => lengthBytes)));
    const recordCount = sum(tables.map(({ pages }) => pages.length));
    const isWorse = await verifyPages(
      {
        reader: this.#reader,
        kernels: this.#kernels,
        tables: byNumber,
        onProblem: (key, error) => this.#problems.reportError(key, error),
        onRecords: (count) => this.#deps.onBytes((packBytes / 2 / recordCount) * count),
      },
      this.#call,
    );
    if (isWorse) await verifyPacksAgain(tables, this.#packCheck(), this.#call);
  }

  /** @throws CHECKPOINT_GONE: what looks like damage may be what a `forget` was doing meanwhile */
  async #mustStillBeThere(manifests: readonly Manifest[]): Promise<void> {
    for (const manifest of manifests) {
      const key = manifestKey(manifest);
      if (await isAbsent(this.#deps.backend, key, this.#call)) throw checkpointGone(key, undefined);
    }
  }

  async #checkDeviceState(manifest: Manifest): Promise<void> {
    const { backend, repositoryId } = this.#deps;
    const reader = new CheckpointReader(backend, repositoryId, manifest);
    const isWhole = await this.#problems.attempt(manifestKey(manifest), () => reader.deviceState(this.#call));
    if (!isWhole) this.#affected.add(manifest.id);
  }

  /** Finds the checkpoints that cannot be read back, given what is known of all records. */
  async #findAffected(manifests: readonly Manifest[]): Promise<void> {
    const { backend, repositoryId } = this.#deps;
    const shelf = new SegmentShelf(SHELF_BYTES);
    for (const manifest of manifests) {
      const isWhole = await this.#problems.attempt(manifestKey(manifest), async () => {
        const index = await PageIndex.open({ backend, repositoryId }, manifest, this.#call, shelf);
        for await (const { refs } of index.windows(this.#call))
          if (refs.some((ref) => ref !== ZERO_REF && this.#isBroken(ref))) this.#affected.add(manifest.id);
      });
      if (!isWhole) this.#affected.add(manifest.id);
    }
  }

  #isBroken(ref: number): boolean {
    const table = this.#tables.get(packOfRef(ref));
    const at = table?.find(ref);
    return at === undefined || table!.depths[at] === BROKEN;
  }

  #isOrphan(key: string): boolean {
    const { keys } = this.#deps;
    const seq = seqOfKey(key);
    if (key.startsWith(keys.packs)) return !this.#tables.has(seq) && !this.#layoutOfPack.has(seq);
    if (key.startsWith(keys.index)) return !this.#segments.isListed(seq);
    return key !== keys.vm && !key.startsWith(keys.checkpoints) && !this.#isBeforeCheckpoints(key);
  }

  /** What a chain may have that has never had a checkpoint, or the record of its VM. */
  #isBeforeCheckpoints(key: string): boolean {
    const { locks, beats, reserves } = this.#deps.keys;
    return [locks, beats, reserves].some((prefix) => key.startsWith(prefix));
  }
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}
