/**
 * One attempt at a checkpoint, from the question what the tracker can be trusted with to the durable
 * manifest.
 *
 *     prepare   tracker, ledger -> scope -> writer             nothing is owed yet
 *     commit    ledger: owed -> capture -> packs, index -> manifest
 *     settle    ledger: clean                                  the checkpoint is there: nothing may fail it
 *     giveBack  tracker, writer, disk snapshots as they were   the checkpoint is not there; when it may be
 *                                                              there, its objects and snapshots stay
 */

import { performance } from 'node:perf_hooks';

import { AUTO_DISK_MODE, planDisks, type DiskPlan } from '../disks/disk-plan.js';
import type { SnapshotRecord } from '../disks/begun-snapshots.js';
import { describeError, CheckpointError, isCheckpointError } from '../errors.js';
import type { Manifest } from '../format/manifest.js';
import { returnMemory } from '../host/garbage.js';
import type { DirtyTracker } from '../hypervisor/dirty-tracker.js';
import type { Vm } from '../hypervisor/vm.js';
import type { ChainWriter } from '../repository/chain-writer.js';
import type { Repository } from '../repository/repository.js';
import type { CheckpointWriter } from '../repository/write/checkpoint-writer.js';
import type { JsonObject } from '../types.js';
import type { Capture } from './capture/capture.js';
import { openCapture } from './capture/open-capture.js';
import { DEFAULT_ROOM_PAGES } from './capture/pause-room.js';
import { faultPoint, type FaultPoint } from './fault-points.js';
import { DEFAULT_COMPRESSION_LEVEL } from './pages/open-pool.js';
import type { PageSource } from './pages/page-source.js';
import { PageWriter } from './pages/page-writer.js';
import type { Hook, HookContext } from './pause/hooks.js';
import { defaultPauseLimitMs } from './pause/pause-limit.js';
import type { StopPolicy } from './pause/stop-policy.js';
import type { CheckpointProgress } from './progress.js';
import type { SessionOptions } from './session-options.js';
import { summaryFigures, type SummaryFigures } from './summary.js';
import type { ChainState } from './trust/chain-state.js';
import type { Ledger, LedgerEntry } from './trust/ledger.js';
import { isUsable, pagesRewound, rewoundTo } from './trust/rewound.js';
import { decideScope, type Scope } from './trust/scope.js';

const FAULT_POINT_OF_WRITER: Readonly<Record<string, FaultPoint>> = {
  'before-pack': 'packWritten',
  'pack-durable': 'packDurable',
  'index-durable': 'indexDurable',
  'after-manifest': 'manifestDurable',
};

/** What the session lends to each of its attempts. */
export interface AttemptDeps {
  readonly vm: Vm;
  readonly vmName: string;
  readonly repository: Repository;
  readonly chain: ChainWriter;
  readonly ledger: Ledger;
  readonly begun: SnapshotRecord;
  readonly policy: StopPolicy;
  readonly hook: Hook | undefined;
  readonly source: PageSource;
  readonly settings: Pick<
    SessionOptions,
    | 'memoryOnly'
    | 'diskMode'
    | 'compressionLevel'
    | 'regroup'
    | 'freezeLimitMs'
    | 'pauseLimitMs'
    | 'roomPages'
    | 'hostKey'
    | 'signal'
  > & { readonly maxPauseMs: number };
  /**
   * True after a failed attempt of this session whose bits were put back: the record is unbroken although the
   * ledger says "owed".
   */
  readonly isCarried: boolean;
  /** Page map and reader of the checkpoint that the next one builds on. */
  readonly stateFor: (scope: Scope, parent: Manifest | null) => Promise<ChainState>;
  /** See `CaptureDeps.checkUnchanged`. */
  readonly checkUnchanged: () => Promise<void>;
}

export interface AttemptRequest {
  readonly forceBase: boolean;
  readonly onProgress: (progress: CheckpointProgress) => void;
  /** When the checkpoint was asked for, on the clock of `performance.now()`. */
  readonly startedMs: number;
}

interface Prepared {
  readonly diskPlan: DiskPlan;
  readonly scope: Scope;
  readonly state: ChainState;
  readonly writer: CheckpointWriter;
  readonly pages: PageWriter;
  readonly capture: Capture;
  /** What the ledger says from here on, but for the state. */
  readonly owner: Omit<LedgerEntry, 'state'>;
  readonly hookContext: HookContext;
}

export interface Committed {
  readonly manifest: Manifest;
  readonly figures: SummaryFigures;
}

export interface GivenBack {
  /** False when the tracker did not take the bits back, or is off: then the next attempt needs another one. */
  readonly isTrackerGood: boolean;
  /** False when the checkpoint may be in the repository. */
  readonly isAbsent: boolean;
}

export class Attempt {
  readonly #deps: AttemptDeps;
  readonly #request: AttemptRequest;
  readonly #prepared: Prepared;

  private constructor(deps: AttemptDeps, request: AttemptRequest, prepared: Prepared) {
    this.#deps = deps;
    this.#request = request;
    this.#prepared = prepared;
  }

  get hookContext(): HookContext {
    return this.#prepared.hookContext;
  }

  get writer(): CheckpointWriter {
    return this.#prepared.writer;
  }

  /** All pages were looked at, which takes much memory for a while. */
  get hasReadAll(): boolean {
    return this.#prepared.scope.kind !== 'dirty';
  }

  /**
   * Changes nothing but the tracker's record, where that turns out to be broken.
   * @throws VM_UNSUPPORTED, DISK_UNSUPPORTED, VM_GONE, VM_PERMISSION, WORKER_FAILED, what the tracker throws
   */
  static async prepare(deps: AttemptDeps, request: AttemptRequest): Promise<Attempt> {
    const { vm, vmName, repository, chain, hook, settings } = deps;
    const { tracker, layout, pool, reason: trackerReason } = deps.source;
    checkFreeze(vm, tracker, settings.freezeLimitMs);
    const [disks, ledger] = await Promise.all([
      vm.disks.list(),
      deps.ledger.read(),
      // Devices come and go between the checkpoints of a session.
      vm.deviceState.check(),
    ]);
    const diskPlan = planDisks(disks, vm.disks.drivers, {
      memoryOnly: settings.memoryOnly ?? false,
      mode: settings.diskMode ?? AUTO_DISK_MODE,
      hookCoversDisks: hook !== undefined,
    });
    const parent = chain.latest;
    // What is decided must be about the record that the ledger names from now on.
    const token = await tracker.beginCheckpoint();
    const rewound = await rewoundTo(repository, ledger, { signal: settings.signal });
    const scope = decideScope({
      forceBase: request.forceBase,
      parent,
      layout,
      ledger: deps.isCarried && ledger !== undefined ? { ...ledger, state: 'clean' } : ledger,
      tracker: { seesWrites: tracker.traits.seesWrites, token },
      trackerReason,
      repositoryId: repository.id,
      chain: vmName,
      isRewindKnown: isUsable(rewound, layout),
    });
    const state = await deps.stateFor(scope, parent);
    await pool.opened();
    if (rewound && scope.kind === 'dirty') tracker.putBack(pagesRewound(rewound, state.map));
    const writer = await chain.begin({
      kind: scope.kind === 'base' ? 'base' : 'incremental',
      parent: scope.kind === 'base' ? null : parent,
      layout,
      map: state.map,
      level: settings.compressionLevel ?? DEFAULT_COMPRESSION_LEVEL,
      regroupFrom: (settings.regroup ?? true) === true ? state.reader : undefined,
      onPoint: (point) => {
        const name = FAULT_POINT_OF_WRITER[point];
        if (name !== undefined) faultPoint(name);
      },
    });
    const { signal, freezeLimitMs } = settings;
    const hookContext: HookContext = {
      checkpointId: writer.id,
      vmAddress: vm.address,
      vmName,
      repository: repository.backend.properties.location,
    };
    const pages = new PageWriter({ pool, writer, map: state.map, reader: state.reader, signal });
    const capture = openCapture({
      vm,
      tracker,
      layout,
      scope,
      pool,
      pages,
      markZero: (zero) => writer.markZero(zero),
      policy: deps.policy,
      hook,
      hookContext,
      freezeLimitMs,
      pauseLimitMs:
        settings.pauseLimitMs ??
        defaultPauseLimitMs({
          maxPauseMs: settings.maxPauseMs,
          hasHook: hook !== undefined,
          hasDiskSnapshots: diskPlan.length > 0,
          memoryBytes: mayTakeAll(tracker) ? layout.sizeBytes : 0,
        }),
      roomPages: settings.roomPages ?? DEFAULT_ROOM_PAGES,
      checkUnchanged: deps.checkUnchanged,
      mayPause: () => chain.mustBeHeld(),
      signal,
      onProgress: request.onProgress,
    });
    const owner = { token, repositoryId: repository.id, chain: vmName, checkpointId: parent?.id ?? '' };
    return new Attempt(deps, request, { diskPlan, scope, state, writer, pages, capture, owner, hookContext });
  }

  /** After a failure `giveBack` must follow. */
  async commit(): Promise<Committed> {
    const { vm, vmName, ledger, begun, source } = this.#deps;
    const { onProgress, startedMs } = this.#request;
    const { capture, diskPlan, scope, writer, pages, owner } = this.#prepared;
    await ledger.write({ ...owner, state: 'owed' });
    await begun.add(writer.id, diskPlan);
    const captured = await capture.run(diskPlan);
    await vm.disks.makeDurable(captured.disks);
    onProgress({ phase: 'commit', round: captured.rounds, donePages: 0, totalPages: 0 });
    // The index of all pages is about to be made, out of several arrays of their number.
    if (this.hasReadAll) returnMemory();
    await writer.setDeviceState(captured.deviceState);
    const figures = summaryFigures({
      scope,
      captured,
      totals: pages.totals,
      tracker: source.tracker.kind,
      layout: source.layout,
      vmName,
    });
    const manifest = await writer.commit({
      identity: vm.identity,
      machine: vm.machine,
      disks: captured.disks,
      frozen: captured.frozen,
      forkedFrom: vm.forkedFrom,
      runState: captured.runState,
      hostKey: this.#deps.settings.hostKey,
      allowed: captured.unchanged,
      stats: { ...figures, totalMs: performance.now() - startedMs } as unknown as JsonObject,
    });
    return { manifest, figures };
  }

  /**
   * The checkpoint is there, and the tracker counts from it. Never throws.
   * @returns what went wrong nevertheless, in words for the operator
   */
  async settle({ id: checkpointId }: Manifest): Promise<readonly string[]> {
    const { ledger, begun } = this.#deps;
    const { state, writer, owner } = this.#prepared;
    const warnings = [...writer.warnings];
    state.carried = false;
    state.parentId = checkpointId;
    try {
      await ledger.write({ ...owner, state: 'clean', checkpointId });
    } catch (error) {
      warnings.push(
        `the next checkpoint will compare all pages, because the ledger could not be written: ${describeError(error)}`,
      );
    }
    faultPoint('ledgerWritten');
    warnings.push(...(await begun.settle((id) => this.#isCommitted(id))));
    return warnings;
  }

  /**
   * After a failure: the harvested bits go back, and nothing that may be ahead of the repository is kept.
   * Never throws.
   */
  async giveBack(cause: unknown): Promise<GivenBack> {
    const { source, begun } = this.#deps;
    const { capture, writer, state } = this.#prepared;
    const isTrackerGood = !isCheckpointError(cause, 'TRACKER_OFF') && putBack(source.tracker, capture);
    const isAbsent = await writer.abort();
    await source.pool.forget().catch(() => undefined);
    // A manifest that may be there after all needs its disk snapshots.
    if (isAbsent) await begun.dropFailed(writer.id, capture.snapshots, cause);
    else if (capture.snapshots.length > 0)
      process.emitWarning(
        `the disk snapshots of checkpoint ${writer.id} stay, for the checkpoint may be there`,
      );
    // What was put back is known to this process only: the ledger keeps saying "owed" to every other one.
    state.carried = !this.hasReadAll;
    return { isTrackerGood, isAbsent };
  }

  /** Whether there is a manifest, readable or not, in whichever chain of the repository it was to go to. */
  async #isCommitted(checkpointId: string): Promise<boolean> {
    try {
      await this.#deps.repository.locate(checkpointId);
      return true;
    } catch (error) {
      if (isCheckpointError(error, 'CHECKPOINT_NOT_FOUND')) return false;
      throw error;
    }
  }
}

/**
 * @returns false when it fails: a new tracker compares all pages, and the writer must be aborted whatever
 *   becomes of this one
 */
function putBack(tracker: DirtyTracker, capture: Capture): boolean {
  try {
    tracker.putBack(capture.harvested);
    return true;
  } catch {
    return false;
  }
}

/** All memory may have to be copied, or sent, in the pause. */
function mayTakeAll({ traits }: DirtyTracker): boolean {
  return !traits.seesWrites || traits.picture !== undefined;
}

/** @throws VM_UNSUPPORTED before anything is done */
function checkFreeze(vm: Vm, tracker: DirtyTracker, freezeLimitMs: number | undefined): void {
  if (freezeLimitMs === undefined) return;
  if (vm.freezer === undefined) {
    throw new CheckpointError('VM_UNSUPPORTED', `there is no guest agent to freeze ${vm.address} with`, {
      hint: 'freeze in a --hook, phase before-pause, and thaw in phases resumed and failed',
    });
  }
  if (tracker.traits.picture === undefined) return;
  // The guest would be frozen for as long as all its memory takes to be sent.
  throw new CheckpointError('VM_UNSUPPORTED', `--freeze cannot be used with the tracker ${tracker.kind}`, {
    hint: 'use another tracker, or leave --freeze away',
  });
}
