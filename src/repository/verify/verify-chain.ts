/**
 * Verifies one chain: its small records, every pack, every index segment against the records, every device
 * state.
 */

import { describeError, isCheckpointError } from '../../errors.js';
import { sameLayout, regionOfPage, type MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { Kernels } from '../../kernels/kernels.js';
import { sharedKernels } from '../../kernels/shared-kernels.js';
import type { CallOptions, StorageBackend, StoredObject } from '../../storage/backend.js';
import type { ChainKeys } from '../../format/chain-keys.js';
import { seqOfKey } from '../../format/chain-keys.js';
import { decodeLock } from '../chain-lock.js';
import { ChainReader, VERIFY_WINDOW_PAGES } from '../read/chain-reader.js';
import { CheckpointReader } from '../read/checkpoint-reader.js';
import { damaged, type DamagedObject } from '../../records/damage.js';
import { checkpointGone, isAbsent } from '../read/gone.js';
import type { IndexEntries } from '../../format/index-segment.js';
import { MAX_SEGMENTS } from '../../format/index-policy.js';
import { loadMap, loadSegment } from '../read/load-map.js';
import { loadManifests } from '../read/manifest-store.js';
import { manifestKey, type Manifest, type PackEntry, type SegmentEntry } from '../../format/manifest.js';
import { packOfRef, ZERO_REF } from '../../format/record-ref.js';
import { BROKEN, type RecordTable } from './record-table.js';
import { verifyPack, verifyPacksAgain, type PackCheck } from './verify-pack.js';
import { verifyPages } from './verify-pages.js';
import { loadVmRecord } from '../vm-record.js';

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

/** A segment and the checkpoints that name it agree on the numbering of pages. */
interface ListedSegment {
  readonly entry: SegmentEntry;
  readonly manifest: Manifest;
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
  /**
   * Packs that segments refer to and that are not there. That is right when they were forgotten and no map
   * leads to them any more.
   */
  readonly #missing = new Map<number, unknown>();
  /** Entries of segments that do not fit their records, by reference. That may be right in the same way. */
  readonly #misfits = new Map<number, { readonly key: string; readonly error: unknown }>();
  #problemCount = 0;

  constructor(deps: ChainVerifierDeps) {
    this.#deps = deps;
    this.#call = { signal: deps.signal };
    this.#reader = new ChainReader(deps.backend, deps.repositoryId, deps.keys.chain, {
      windowPages: VERIFY_WINDOW_PAGES,
      givesBlank: true,
    });
  }

  /** @throws what is not about damage: INTERRUPTED, failures of the backend */
  async run(): Promise<ChainVerification> {
    const { backend, keys } = this.#deps;
    await this.#checkSmallRecords();
    const { manifests, damaged: unreadable } = await loadManifests(backend, keys, this.#call);
    for (const problem of unreadable) this.#report(problem);
    const segments = this.#listedSegments(manifests);
    const referred = await this.#readSegments(segments);
    await this.#checkPacks(manifests, referred);
    await this.#checkPages();
    await this.#compareSegments(segments);
    await this.#checkUsedEntries(manifests);
    for (const manifest of manifests) await this.#checkDeviceState(manifest);
    if (this.#problemCount > 0) {
      await this.#mustStillBeThere(manifests);
      await this.#findAffected(manifests);
    }
    let records = 0;
    for (const table of this.#tables.values()) records += table.pages.length;
    const orphans = this.#deps.objects
      .filter(({ key }) => this.#isOrphan(key, segments))
      .map(({ key }) => key);
    return { checkpoints: manifests.length, records, orphans, affected: [...this.#affected] };
  }

  async #checkSmallRecords(): Promise<void> {
    const { backend, keys, objects, onBytes } = this.#deps;
    await this.#attempt(keys.vm, () => loadVmRecord(backend, keys, this.#call));
    for (const { key } of objects.filter((object) => object.key.startsWith(keys.locks))) {
      await this.#attempt(key, async () => {
        const bytes = await backend.load(key, undefined, this.#call).catch((error: unknown) => {
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

  /**
   * Segments by number. When two manifests say different things of one segment, the object itself tells which
   * is wrong.
   */
  #listedSegments(manifests: readonly Manifest[]): Map<number, ListedSegment> {
    const segments = new Map<number, ListedSegment>();
    for (const manifest of manifests) {
      for (const { seq, directorySha256 } of manifest.packs) {
        const known = this.#layoutOfPack.get(seq);
        if (known !== undefined) {
          this.#fail(
            manifestKey(manifest),
            `pack ${seq} (${directorySha256}) is listed by an earlier checkpoint as well`,
          );
        }
        this.#layoutOfPack.set(seq, manifest.layout);
      }
      if (manifest.segments.length > MAX_SEGMENTS)
        this.#fail(manifestKey(manifest), 'too many index segments');
      for (const entry of manifest.segments) {
        const known = segments.get(entry.seq);
        if (known === undefined) segments.set(entry.seq, { entry, manifest });
        else if (known.entry.sha256 !== entry.sha256 || !sameLayout(known.manifest.layout, manifest.layout)) {
          this.#fail(
            manifestKey(manifest),
            `index segment ${entry.seq} differs from what an earlier checkpoint says of it`,
          );
        }
      }
    }
    return segments;
  }

  /** @returns numbers of all packs that entries refer to */
  async #readSegments(segments: Map<number, ListedSegment>): Promise<Set<number>> {
    const packs = new Set<number>();
    for (const { entry, manifest } of segments.values()) {
      const entries = await this.#segment(entry, manifest, true);
      for (const ref of entries?.refs ?? []) if (ref !== ZERO_REF) packs.add(packOfRef(ref));
      this.#deps.onBytes(entry.sizeBytes);
    }
    return packs;
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
    await this.#attempt(this.#deps.keys.pack(seq), async () => {
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
      onProblem: (key, error) => this.#reportError(key, error),
      // Frames are half of the work, and their pages the other half.
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
        onProblem: (key, error) => this.#reportError(key, error),
        onRecords: (count) => this.#deps.onBytes((packBytes / 2 / recordCount) * count),
      },
      this.#call,
    );
    if (isWorse) await verifyPacksAgain(tables, this.#packCheck(), this.#call);
  }

  async #compareSegments(segments: Map<number, ListedSegment>): Promise<void> {
    for (const { entry, manifest } of segments.values()) {
      const entries = await this.#segment(entry, manifest, false);
      if (entries === undefined) continue;
      this.#compareEntries(this.#deps.keys.segment(entry.seq), entries, manifest.layout);
    }
  }

  #compareEntries(key: string, { pages, refs, depths }: IndexEntries, layout: MemoryLayout): void {
    for (let i = 0; i < pages.length; i++) {
      const ref = refs[i]!;
      if (ref === ZERO_REF) continue;
      const table = this.#tables.get(packOfRef(ref));
      // The pack is missing or unreadable, which is reported already.
      if (table === undefined) continue;
      const at = table.find(ref);
      const depth = at === undefined ? 0 : table.depths[at]!;
      if (depth === BROKEN) continue;
      const from = this.#layoutOfPack.get(packOfRef(ref));
      let what: string;
      if (at === undefined) what = 'refers to a record that the pack does not have';
      else if (depth !== depths[i]) what = 'depth differs from that of the record';
      else if (from !== undefined && !isSamePage(from, table.pages[at]!, layout, pages[i]!))
        what = 'refers to a record of another page';
      else continue;
      this.#misfits.set(ref, { key, error: damaged(key, what, { entry: i }) });
    }
  }

  /**
   * An entry that newer segments override in every checkpoint may lead to what was forgotten; one that counts
   * must not.
   */
  async #checkUsedEntries(manifests: readonly Manifest[]): Promise<void> {
    if (this.#missing.size === 0 && this.#misfits.size === 0) return;
    const { backend, repositoryId, keys } = this.#deps;
    for (const manifest of manifests) {
      const check = async (): Promise<void> => {
        const { refs } = await loadMap(backend, repositoryId, manifest, this.#call);
        for (const ref of refs) {
          if (ref === ZERO_REF) continue;
          const missing = this.#missing.get(packOfRef(ref));
          if (missing !== undefined) this.#reportError(keys.pack(packOfRef(ref)), missing);
          const misfit = this.#misfits.get(ref);
          if (misfit !== undefined) this.#reportError(misfit.key, misfit.error);
        }
      };
      await this.#attempt(manifestKey(manifest), check, false);
    }
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
    const isWhole = await this.#attempt(manifestKey(manifest), () => reader.deviceState(this.#call));
    if (!isWhole) this.#affected.add(manifest.id);
  }

  /** Finds the checkpoints that cannot be read back, given what is known of all records. */
  async #findAffected(manifests: readonly Manifest[]): Promise<void> {
    const { backend, repositoryId } = this.#deps;
    for (const manifest of manifests) {
      const isWhole = await this.#attempt(manifestKey(manifest), async () => {
        const { refs } = await loadMap(backend, repositoryId, manifest, this.#call);
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

  #isOrphan(key: string, segments: Map<number, ListedSegment>): boolean {
    const { keys } = this.#deps;
    const seq = seqOfKey(key);
    if (key.startsWith(keys.packs)) return !this.#tables.has(seq) && !this.#layoutOfPack.has(seq);
    if (key.startsWith(keys.index)) return !segments.has(seq);
    return key !== keys.vm && !key.startsWith(keys.checkpoints) && !key.startsWith(keys.locks);
  }

  /** Undefined when the segment is damaged, which is reported the first time. */
  async #segment(
    entry: SegmentEntry,
    manifest: Manifest,
    isFirst: boolean,
  ): Promise<IndexEntries | undefined> {
    const { backend, repositoryId, keys } = this.#deps;
    const source = { backend, repositoryId, chain: keys.chain, pageSpan: manifest.layout.pageSpan };
    let entries: IndexEntries | undefined;
    await this.#attempt(
      keys.segment(entry.seq),
      async () => {
        entries = await loadSegment(source, entry, this.#call);
      },
      isFirst,
    );
    return entries;
  }

  /** @returns whether it went well; damage is reported, anything else thrown on */
  async #attempt(key: string, work: () => unknown, report = true): Promise<boolean> {
    try {
      await work();
      return true;
    } catch (error) {
      if (report) this.#reportError(key, error);
      return false;
    }
  }

  #reportError(key: string, error: unknown): void {
    const isDamage = (['REPO_DAMAGED', 'REPO_VERSION', 'STORAGE_NOT_FOUND'] as const).some((code) =>
      isCheckpointError(error, code),
    );
    if (!isDamage) throw error;
    const named = isCheckpointError(error) ? error.detail.key : undefined;
    this.#report({ key: typeof named === 'string' ? named : key, message: describeError(error) });
  }

  #fail(key: string, what: string): void {
    this.#reportError(key, damaged(key, what));
  }

  #report(problem: DamagedObject): void {
    this.#problemCount++;
    this.#deps.onProblem(problem);
  }
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}

/** The same place of the same region, in two numberings. */
function isSamePage(from: MemoryLayout, page: number, to: MemoryLayout, otherPage: number): boolean {
  const region = regionOfPage(from, page);
  const other = regionOfPage(to, otherPage);
  if (region === undefined || other === undefined) return false;
  return region.id === other.id && page - region.firstPage === otherPage - other.firstPage;
}
