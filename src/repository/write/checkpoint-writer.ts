/**
 * One checkpoint being written: frames and device state into packs, then the index segment, then the
 * manifest, each durable before the next (docs/format.md, write order). Until the manifest is there, nothing
 * of it counts.
 *
 * Frames may come from several callers at once: each is given its addresses at the moment of the call.
 */

import { CheckpointError, isCheckpointError } from '../../errors.js';
import type { MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { DiskSnapshot } from '../../hypervisor/disks.js';
import type { ForkOrigin } from '../../hypervisor/fork-origin.js';
import type { FrozenGuest } from '../../hypervisor/freezer.js';
import type { VmIdentity } from '../../hypervisor/vm.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import type { JsonObject } from '../../types.js';
import type { ChainKeys } from '../../format/chain-keys.js';
import type { ChainReader } from '../read/chain-reader.js';
import { encodeBlobFrame, FRAME_KIND_BLOB, type EncodedFrame } from '../../format/frame.js';
import { hostSealOf } from '../../format/host-seal.js';
import { encodeSegment } from '../../format/index-segment.js';
import { entriesOf, planSegment, type SegmentPlan } from './segment-plan.js';
import {
  encodeManifest,
  type CheckpointKind,
  type DeviceStateEntry,
  type Manifest,
  type PackEntry,
  type SegmentEntry,
} from '../../format/manifest.js';
import { PACK_TARGET_BYTES } from '../../format/pack-format.js';
import { enterRecords } from './enter-records.js';
import { PackSeries } from './pack-series.js';
import type { PackWriter } from './pack-writer.js';
import type { PageMap } from '../read/page-map.js';
import type { RegroupAhead } from './regroup-ahead.js';
import { RegroupStep, type RegroupFigures } from './regroup-step.js';
import type { RegroupedPack } from './regrouped-pack.js';
import { packOfRef, ZERO_REF, type RecordRef } from '../../format/record-ref.js';
import { WrittenObjects } from './written-objects.js';
import { sha256Hex } from '../../format/sealed-json.js';

/** Points of a commit, in the order in which it passes them. */
export type WritePoint =
  'before-pack' | 'pack-durable' | 'index-durable' | 'before-manifest' | 'after-manifest';

export interface CheckpointWriterOptions {
  readonly kind: CheckpointKind;
  /** Null for a base. */
  readonly parent: Manifest | null;
  readonly layout: MemoryLayout;
  /**
   * The parent's committed map in `layout`, empty for a base. Changed provisionally, committed or rolled back
   * at the end.
   */
  readonly map: PageMap;
  /** zstd level for device state and index, 0 = off. */
  readonly level: number;
  /** Called between the steps of `commit`; what it throws fails the commit. For fault injection. */
  readonly onPoint?: ((point: WritePoint) => void) | undefined;
  readonly packTargetBytes?: number | undefined;
  /** Reads committed records of the chain. When given, scattered records are regrouped where it is due. */
  readonly regroupFrom?: ChainReader | undefined;
  /** What was regrouped ahead of this checkpoint; the writer's from here on. */
  readonly regroupedAhead?: RegroupAhead | undefined;
}

/** What the chain gives its writers. */
export interface CheckpointWriterDeps {
  readonly backend: StorageBackend;
  readonly repositoryId: string;
  readonly keys: ChainKeys;
  readonly owner: Uint8Array;
  readonly vmName: string;
  readonly id: string;
  readonly seq: number;
  readonly signal: AbortSignal | undefined;
  /** Begins a pack of the next number. */
  newPack(): PackWriter;
  nextIndexSeq(): number;
  /** What each of the newest increments added to the chain, at most so many, in bytes. */
  storedLately(count: number): readonly number[];
  /** @throws REPO_LOCKED when the lock is gone */
  checkLock(): Promise<void>;
  /** Called once the writer will not be used any more; with the manifest when it is committed. */
  done(manifest: Manifest | null): void;
}

export interface CommitFields {
  readonly identity: VmIdentity;
  readonly machine: JsonObject;
  readonly disks: readonly DiskSnapshot[];
  /** When the guest's file systems were frozen in the pause. */
  readonly frozen?: FrozenGuest | undefined;
  /** Of a VM that was forked. */
  readonly forkedFrom?: ForkOrigin | undefined;
  readonly stats: JsonObject;
  /** Key of this host, which took the checkpoint; see `host-seal.ts`. */
  readonly hostKey?: Uint8Array | undefined;
  /** The run state in which the VM was found and left. */
  readonly runState?: string;
  /** Waited for before the manifest is written; when it fails, the commit does. */
  readonly allowed?: Promise<void>;
}

export class CheckpointWriter {
  readonly id: string;
  readonly #options: CheckpointWriterOptions;
  readonly #deps: CheckpointWriterDeps;
  readonly #call: CallOptions;
  readonly #written: WrittenObjects;
  readonly #packs: PackSeries;
  readonly #regrouping: RegroupStep;
  #deviceState: DeviceStateEntry | null = null;
  /** The manifest may be there: its save had no answer, and it could not be looked at. */
  #manifestUnsure = false;
  /** Once aborted: there certainly is no manifest. */
  #isAbsent = false;
  #state: 'open' | 'committing' | 'committed' | 'aborted' = 'open';
  #recordCount = 0;
  #rawBytes = 0;

  constructor(options: CheckpointWriterOptions, deps: CheckpointWriterDeps) {
    this.id = deps.id;
    this.#options = options;
    this.#deps = deps;
    this.#call = { signal: deps.signal };
    this.#written = new WrittenObjects(deps.backend, () => holds(() => deps.checkLock()));
    const newPack = (): PackWriter => this.#newPack();
    this.#packs = new PackSeries({
      newPack,
      onDurable: ({ sizeBytes }) => this.#written.addBytes(sizeBytes),
      targetBytes: options.packTargetBytes ?? PACK_TARGET_BYTES,
    });
    this.#regrouping = new RegroupStep(
      {
        map: options.map,
        level: options.level,
        reader: options.regroupFrom,
        ahead: options.regroupedAhead,
        written: this.#written,
        newPack,
        storedLately: (count) => deps.storedLately(count),
      },
      this.#call,
    );
  }

  /** Bytes given to the backend so far, or, once committed, added by this checkpoint, manifest included. */
  get storedBytes(): number {
    return this.#written.sizeBytes + this.#packs.openBytes;
  }

  /** Records appended so far. */
  get recordCount(): number {
    return this.#recordCount;
  }

  /** Bytes of the frames before compression. */
  get rawBytes(): number {
    return this.#rawBytes;
  }

  get regrouped(): RegroupFigures {
    return this.#regrouping.figures;
  }

  /** What went wrong without failing the checkpoint. */
  get warnings(): readonly string[] {
    return this.#regrouping.warnings;
  }

  /** True for a record that was durable before this checkpoint began, and so can be read. */
  isCommitted(ref: RecordRef): boolean {
    const { firstSeq } = this.#packs;
    return firstSeq === undefined || packOfRef(ref) < firstSeq;
  }

  /**
   * Gives the records of a frame their addresses, enters them in the map and queues the frame; settles when
   * there is room for the next. A later record of the same page counts.
   * @throws RangeError for a record whose base is not what the map holds for its page, or that would be too
   * deep; what the backend throws. Either way the checkpoint must be aborted.
   */
  async appendFrame(frame: EncodedFrame): Promise<void> {
    this.#mustBeOpen();
    const { pack, number } = this.#packs.append(frame.bytes, frame.kind, frame.pages.length);
    enterRecords(this.#options.map, frame, pack.seq, number);
    this.#recordCount += frame.pages.length;
    this.#rawBytes += frame.rawBytes;
    await this.#orLost(pack.drained());
  }

  /**
   * Waits until the backend has taken all that was appended, and until closed packs are durable: nothing is
   * under way then. @throws what the backend throws
   */
  async idle(): Promise<void> {
    this.#mustBeOpen();
    await this.#packs.idle();
  }

  /** These pages are zero now. */
  markZero(pages: Uint32Array): void {
    this.#mustBeOpen();
    const { map } = this.#options;
    for (const page of pages) if (map.refOf(page) !== ZERO_REF) map.set(page, ZERO_REF, 0);
  }

  /** This page holds again what a committed record of its own at `depth` holds. */
  markReverted(page: number, ref: RecordRef, depth: number): void {
    this.#mustBeOpen();
    if (!this.isCommitted(ref)) throw new RangeError(`page ${page}: the record is not committed`);
    this.#options.map.set(page, ref, depth);
  }

  /** @throws what the backend throws */
  async setDeviceState(bytes: Uint8Array): Promise<void> {
    this.#mustBeOpen();
    const frame = encodeBlobFrame(bytes, this.#options.level);
    const { pack, number } = this.#packs.append(frame, FRAME_KIND_BLOB, 0);
    this.#deviceState = { pack: pack.seq, frame: number, sizeBytes: bytes.length, sha256: sha256Hex(bytes) };
    await this.#orLost(pack.drained());
  }

  /**
   * Makes the checkpoint durable and visible. After an error it is neither, but for CHECKPOINT_UNCERTAIN:
   * then it may be both, and what it needs stays. Either way `abort` follows.
   * @throws CHECKPOINT_UNCERTAIN when the backend lost its answer to the manifest and could not be asked
   *   again, REPO_LOCKED when the lock was removed by force, what `onPoint` throws, what the backend throws
   */
  async commit(fields: CommitFields): Promise<Manifest> {
    this.#mustBeOpen();
    this.#state = 'committing';
    const { map, onPoint } = this.#options;
    onPoint?.('before-pack');
    const packs = await this.#orLost(this.#packs.finish());
    onPoint?.('pack-durable');
    const plan = await this.#planSegment();
    const regrouped = await this.#regrouping.run(plan);
    const manifest = await this.#orLost(this.#publish(fields, plan, packs, regrouped));
    this.#state = 'committed';
    map.commit();
    this.#deps.done(manifest);
    onPoint?.('after-manifest');
    return manifest;
  }

  /** Index and manifest. When there is no room for them, what was regrouped gives way. */
  async #publish(
    fields: CommitFields,
    plan: SegmentPlan,
    packs: readonly PackEntry[],
    regrouped: RegroupedPack | undefined,
  ): Promise<Manifest> {
    const { onPoint } = this.#options;
    try {
      const segments = await this.#writeIndex(plan);
      onPoint?.('index-durable');
      await fields.allowed;
      const manifest = this.#manifest(fields, segments, packs, regrouped);
      await this.#deps.checkLock();
      onPoint?.('before-manifest');
      this.#written.addBytes(await this.#saveManifest(manifest));
      return manifest;
    } catch (error) {
      if (regrouped === undefined || !isCheckpointError(error, 'STORAGE_FULL')) throw error;
      await this.#regrouping.takeBack(regrouped, error);
      return this.#publish(fields, plan, packs, undefined);
    }
  }

  #manifest(
    fields: CommitFields,
    segments: readonly SegmentEntry[],
    packs: readonly PackEntry[],
    regrouped: RegroupedPack | undefined,
  ): Manifest {
    const { map, layout, kind, parent } = this.#options;
    const { id, seq, vmName, keys } = this.#deps;
    const manifest: Manifest = {
      id,
      seq,
      chain: keys.chain,
      vmName,
      parentId: parent?.id ?? null,
      kind,
      time: new Date().toISOString(),
      hypervisor: fields.identity.hypervisor,
      identity: fields.identity,
      machine: fields.machine,
      layout,
      runState: fields.runState ?? '',
      packs: regrouped === undefined ? packs : [...packs, regrouped.entry].sort((a, b) => a.seq - b.seq),
      ...(regrouped === undefined
        ? {}
        : { regrouped: { pack: regrouped.entry.seq, pageCount: regrouped.pages.length } }),
      segments,
      deviceState: this.#deviceState,
      disks: fields.disks,
      ...(fields.frozen === undefined ? {} : { frozen: fields.frozen }),
      ...(fields.forkedFrom === undefined ? {} : { forkedFrom: fields.forkedFrom }),
      maxDepth: map.maxDepth(),
      storedBytes: this.#written.sizeBytes,
      stats: fields.stats,
    };
    if (fields.hostKey === undefined) return manifest;
    return { ...manifest, hostSeal: hostSealOf(manifest, fields.hostKey) };
  }

  /**
   * Takes everything back that is not committed; the map is as it was. Does nothing after a commit. A
   * checkpoint that may be there is looked for once more, and stays if it is. Never throws.
   * @returns true when it is certain that there is no such checkpoint in the repository
   */
  async abort(): Promise<boolean> {
    if (this.#state === 'committed') return false;
    if (this.#state === 'aborted') return this.#isAbsent;
    this.#state = 'aborted';
    this.#options.map.rollback();
    await this.#packs.abort();
    await this.#options.regroupedAhead?.drop();
    // While it cannot be said whether the manifest is there, what it needs stays: as orphans, if it is not.
    this.#isAbsent = !this.#manifestUnsure || (await this.#isManifestAbsent());
    if (this.#isAbsent) await this.#written.takeAllBack();
    this.#deps.done(null);
    return this.#isAbsent;
  }

  /** Looks once more. Never throws. */
  async #isManifestAbsent(): Promise<boolean> {
    const { backend, keys, seq, id } = this.#deps;
    try {
      return (await backend.confirm(keys.checkpoint(seq, id))) === undefined;
    } catch {
      return false;
    }
  }

  /**
   * Whoever has taken the chain has cleared away what was being written, or uses the same numbers: that the
   * lock is lost says more.
   * @throws REPO_LOCKED instead
   */
  async #orLost<T>(work: Promise<T>): Promise<T> {
    try {
      return await work;
    } catch (error) {
      if (isCheckpointError(error, 'STORAGE_NOT_FOUND') || isCheckpointError(error, 'STORAGE_EXISTS'))
        await this.#deps.checkLock();
      throw error;
    }
  }

  #mustBeOpen(): void {
    if (this.#state !== 'open') throw new TypeError(`checkpoint ${this.id} is ${this.#state}`);
  }

  #newPack(): PackWriter {
    const pack = this.#deps.newPack();
    this.#written.follow(pack.key, pack.saved);
    return pack;
  }

  async #saveManifest(manifest: Manifest): Promise<number> {
    const { backend, keys, seq, id } = this.#deps;
    try {
      // Nothing may come between this look at the lock and the manifest: whoever takes the chain from us
      // removes what is written but has no name yet, before it looks which manifests there are.
      return await backend.save(keys.checkpoint(seq, id), encodeManifest(manifest), {
        ...this.#call,
        beforeVisible: () => this.#deps.checkLock(),
      });
    } catch (error) {
      if (!isCheckpointError(error, 'STORAGE_UNCERTAIN')) throw error;
      this.#manifestUnsure = true;
      throw new CheckpointError(
        'CHECKPOINT_UNCERTAIN',
        `whether checkpoint ${id} was committed cannot be said, for the storage gave no answer: ${error.message}`,
        {
          cause: error,
          detail: { checkpointId: id, ...error.detail },
          hint: 'when the storage answers again, "cairn list" tells; the next checkpoint is right either way',
        },
      );
    }
  }

  #planSegment(): Promise<SegmentPlan> {
    const { map, parent, layout } = this.#options;
    const { backend, keys, repositoryId } = this.#deps;
    const source = { backend, repositoryId, chain: keys.chain, pageSpan: layout.pageSpan };
    return planSegment(map, parent, layout, source, this.#call);
  }

  async #writeIndex(plan: SegmentPlan): Promise<readonly SegmentEntry[]> {
    const { map, level } = this.#options;
    const { backend, keys, owner } = this.#deps;
    if (plan.pages === null) return plan.kept;
    const seq = this.#deps.nextIndexSeq();
    const { bytes, directorySha256 } = encodeSegment(
      { seq, level: plan.level, owner },
      plan.pages,
      (pages) => entriesOf(map, pages),
      level,
    );
    const saving = backend.save(keys.segment(seq), bytes, this.#call);
    this.#written.follow(keys.segment(seq), saving);
    const sizeBytes = await saving;
    this.#written.addBytes(sizeBytes);
    const entry = {
      seq,
      level: plan.level,
      entryCount: plan.pages.length,
      sizeBytes,
      directorySha256,
    };
    return [entry, ...plan.kept];
  }
}

async function holds(checkLock: () => Promise<void>): Promise<boolean> {
  try {
    await checkLock();
    return true;
  } catch {
    return false;
  }
}
