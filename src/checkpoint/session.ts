/**
 * A VM under checkpoints: everything that a row of checkpoints shares. One-shot commands take one checkpoint
 * and close it; a watcher keeps it open, and with it the previous versions and the page map. One checkpoint
 * is an `Attempt`.
 */

import { performance } from 'node:perf_hooks';

import { SnapshotRecord } from '../disks/begun-snapshots.js';
import { disksOfRunning, dropSnapshots, snapshotsOf, type LeftSnapshot } from '../disks/forgotten-disks.js';
import { CheckpointError, describeError, isCheckpointError } from '../errors.js';
import type { Manifest } from '../format/manifest.js';
import { collectGarbage, letHeapGrow, returnMemory } from '../host/garbage.js';
import { defaultRuntimeDir, openRuntimeDir } from '../host/runtime-dir.js';
import { VmLock } from '../host/vm-lock.js';
import type { DirtyTracker } from '../hypervisor/dirty-tracker.js';
import { sameLayout, type MemoryLayout } from '../hypervisor/memory-layout.js';
import type { Vm, VmReport } from '../hypervisor/vm.js';
import type { ChainWriter } from '../repository/chain-writer.js';
import { Calendar } from '../repository/forget/calendar.js';
import type { ForgetOptions, ForgetResult, ForgottenCheckpoint } from '../repository/forget/forget.js';
import type { Repository } from '../repository/repository.js';
import type { KeepPolicy } from '../repository/forget/keep-policy.js';
import { leftWhereTheyAre } from '../repository/write/regroup-step.js';
import { Attempt, type AttemptDeps, type Committed } from './attempt.js';
import { DEFAULT_COMPRESSION_LEVEL, startPool } from './pages/open-pool.js';
import { fingerprint, openSource, type PageSource } from './pages/page-source.js';
import type { SessionOptions } from './session-options.js';
import { CommandHook, type Hook, type HookContext } from './pause/hooks.js';
import { StopPolicy } from './pause/stop-policy.js';
import type { CheckpointProgress } from './progress.js';
import type { CheckpointSummary } from './summary.js';
import { chainNameOf } from './trust/chain-name.js';
import { loadState, readEarly, type ChainState, type EarlyMap } from './trust/chain-state.js';
import { Ledger } from './trust/ledger.js';
import { refuseAnotherVm } from './trust/same-vm.js';
import type { Scope } from './trust/scope.js';
import { escapeFrom } from './trust/tracker-choice.js';

export type { SessionOptions } from './session-options.js';

export interface CheckpointOptions {
  /** Start a new base although there is a parent. */
  readonly forceBase?: boolean;
  readonly onProgress?: (progress: CheckpointProgress) => void;
}

export interface LentVm {
  readonly vm: Vm;
  readonly vmName: string;
  readonly repository: Repository;
  readonly chain: ChainWriter;
  readonly ledger: Ledger;
  readonly layout: MemoryLayout;
  /** Started. */
  readonly tracker: DirtyTracker;
  readonly trackerReason: string;
}

export const DEFAULT_MAX_PAUSE_MS = 10;
const MAX_ROUNDS = 12;
const HELD_ANEW = 'the lock of the chain was lost to somebody else and has been taken again';

export class CheckpointSession {
  readonly vm: Vm;
  readonly vmName: string;
  readonly #options: SessionOptions;
  readonly #chain: ChainWriter;
  readonly #lock: VmLock;
  readonly #ledger: Ledger;
  readonly #begun: SnapshotRecord;
  readonly #policy: StopPolicy;
  readonly #hook: Hook | undefined;
  #source: PageSource;
  /**
   * Whether the tracker lost the VM or must no longer be trusted: then one is chosen anew before the next
   * checkpoint.
   */
  #sourceIsStale = false;
  #state: ChainState | undefined;
  #early: EarlyMap | undefined;
  #collection: NodeJS.Immediate | undefined;

  private constructor(options: SessionOptions, parts: SessionParts) {
    this.#options = options;
    this.vm = parts.vm;
    this.vmName = parts.vmName;
    this.#chain = parts.chain;
    this.#lock = parts.lock;
    this.#ledger = parts.ledger;
    this.#begun = parts.begun;
    this.#source = parts.source;
    this.#early = parts.early;
    this.#policy = new StopPolicy({
      maxPauseMs: options.maxPauseMs ?? DEFAULT_MAX_PAUSE_MS,
      maxRounds: MAX_ROUNDS,
    });
    this.#hook = options.hook === undefined ? undefined : new CommandHook(options.hook);
  }

  /**
   * Takes both locks (of the running VM and of its chain), arms or takes over the tracker.
   * @param vm the session's from here on: it closes the VM in `close`, and also when this fails. Its tracker
   *   goes before it, and nobody else may have one on it
   * @throws VM_LOCKED, REPO_LOCKED, CHAIN_WRONG_VM, TRACKER_UNAVAILABLE, what the VM throws
   */
  static async open(vm: Vm, options: SessionOptions): Promise<CheckpointSession> {
    const cleanUp: (() => Promise<void> | void)[] = [() => vm.close()];
    try {
      letHeapGrow();
      // Both take their time to start, and are needed by the first pause.
      vm.runState.prepare?.();
      const pool = startPool(options);
      cleanUp.push(() => pool.close());
      const runtimeDir = await openRuntimeDir(options.runtimeDir ?? defaultRuntimeDir());
      const lock = await VmLock.take(vm, runtimeDir);
      cleanUp.push(() => lock.release());
      if (lock.notice !== '') options.onNotice?.(lock.notice);
      const vmName = options.name ?? chainNameOf(vm);
      const chain = await options.repository.openChainWriter(vmName, vm.identity, {
        signal: options.signal,
        waitSignal: options.waitSignal,
        onWait: options.onNotice,
      });
      cleanUp.push(() => chain.close());
      await refuseAnotherVm(vm, chain.latest);
      const early = readEarly(chain);
      const source = await openSource(vm, options, pool);
      const ledger = new Ledger(runtimeDir, vm.identity);
      const begun = new SnapshotRecord(
        runtimeDir,
        vm,
        options.repository.id,
        options.repository.backend.properties.location,
      );
      return new CheckpointSession(options, { vm, vmName, chain, lock, ledger, begun, source, early });
    } catch (error) {
      await runAll(cleanUp.reverse());
      throw error;
    }
  }

  /** Number of the newest checkpoint in its chain; 0 when there is none. */
  get latestSeq(): number {
    return this.#chain.latest?.seq ?? 0;
  }

  get trackerKind(): string {
    return this.#source.tracker.kind;
  }

  /** Why a faster tracker is not in use; empty when the best one is. */
  get trackerReason(): string {
    return this.#source.reason;
  }

  /**
   * Takes one checkpoint. After a failure the session is good for another try, which counts from the newest
   * checkpoint that is known to be there.
   * @throws CHECKPOINT_UNCERTAIN when it may be there all the same, what the VM, its tracker and the backend
   *   throw
   */
  async checkpoint({
    forceBase = false,
    onProgress = () => undefined,
  }: CheckpointOptions = {}): Promise<CheckpointSummary> {
    const startedMs = performance.now();
    // Before the VM is touched: without the lock the checkpoint could not be committed.
    const isHeldAnew = await this.#chain.holdAgain();
    await this.#followMemory();
    const attempt = await Attempt.prepare(this.#lent(), { forceBase, onProgress, startedMs });
    let committed: Committed;
    try {
      committed = await attempt.commit();
    } catch (error) {
      const { isTrackerGood, isAbsent } = await attempt.giveBack(error);
      if (!isTrackerGood) this.#sourceIsStale = true;
      await this.#runQuietly(isAbsent ? 'failed' : 'uncertain', attempt.hookContext);
      throw error;
    }
    // From here on the checkpoint is there, whatever happens: nothing below may fail it.
    const { manifest, figures } = committed;
    const warnings = [
      ...(isHeldAnew ? [HELD_ANEW] : []),
      ...figures.warnings,
      ...(await attempt.settle(manifest)),
    ];
    const totalMs = performance.now() - startedMs;
    await this.#runQuietly('committed', attempt.hookContext);
    const { storedBytes, regrouped } = attempt.writer;
    const hasTakenMuch = attempt.hasReadAll || regrouped.pages > 0;
    this.#collection = setImmediate(() => (hasTakenMuch ? returnMemory() : collectGarbage()));
    return {
      ...figures,
      warnings,
      checkpointId: manifest.id,
      parentId: manifest.parentId,
      totalMs,
      storedBytes,
      regroupedPages: regrouped.pages,
      regroupedBytes: regrouped.storedBytes,
      regroupMs: regrouped.ms,
    };
  }

  /**
   * Forgets, between checkpoints, those of the chain that a policy does not keep. The newest one stays, and
   * with it what the tracker counts from.
   * @param options.withDisks removes their disk snapshots too, where that is possible
   * @param options.keepMisdated goes on although some are dated later than now
   * @throws see `forget`
   */
  async forget(
    policy: KeepPolicy,
    options: Pick<ForgetOptions, 'thinAbove' | 'onlyIfAny' | 'manifestsOnly' | 'signal' | 'until'> & {
      readonly withDisks?: boolean;
      readonly keepMisdated?: boolean;
    } = {},
  ): Promise<ForgetResult & { readonly disks: readonly LeftSnapshot[] }> {
    let disks: readonly LeftSnapshot[] = [];
    const { withDisks = false, keepMisdated, ...more } = options;
    const onForgotten = async (removed: readonly ForgottenCheckpoint[]): Promise<void> => {
      const gone = removed.flatMap(({ manifest }) => manifest ?? []);
      const disksOf = disksOfRunning(this.vm);
      disks = withDisks ? await dropSnapshots(gone, disksOf) : snapshotsOf(gone, disksOf);
    };
    // What the workers and the map keep are versions that the newest checkpoint has, so they stay good.
    try {
      const result = await this.#chain.forget(policy, new Calendar(), { ...more, keepMisdated, onForgotten });
      return { ...result, disks };
    } catch (error) {
      // The checkpoints of these snapshots are gone: nothing else would name the snapshots any more.
      for (const { remedy } of disks) process.emitWarning(`a disk snapshot stays: ${remedy}`);
      throw error;
    }
  }

  /**
   * Between checkpoints: does ahead of the next one what keeps a long chain fast to read (see `regroup` of the options, which
   * says `between`). A failure is no harm: records stay where they are.
   * @param until when it is aborted, this returns soon, with what was done by then
   * @returns what went wrong, in words for the operator; empty when nothing did
   */
  async upkeep(until: AbortSignal): Promise<string> {
    const state = this.#state;
    if (this.#options.regroup !== 'between' || until.aborted) return '';
    if (state === undefined || state.parentId !== this.#chain.latest?.id) return '';
    const { map, layout, reader } = state;
    const level = this.#options.compressionLevel ?? DEFAULT_COMPRESSION_LEVEL;
    try {
      const pages = await this.#chain.regroupAhead({ map, layout, reader, level, until });
      if (pages > 0) returnMemory();
      return '';
    } catch (error) {
      return isCheckpointError(error, 'INTERRUPTED') ? '' : leftWhereTheyAre(error);
    }
  }

  /**
   * For what else is done to the VM between checkpoints, under both locks. Whoever clears marks of the tracker or
   * writes to the VM keeps the ledger true.
   */
  async between<T>(work: (lent: LentVm) => Promise<T>): Promise<T> {
    await this.#chain.holdAgain();
    await this.#followMemory();
    const { repository } = this.#options;
    const { layout, tracker, reason: trackerReason } = this.#source;
    const shared = { vm: this.vm, vmName: this.vmName, repository, chain: this.#chain, ledger: this.#ledger };
    return work({ ...shared, layout, tracker, trackerReason });
  }

  /**
   * Between checkpoints: bytes by which the room that is left in the storage may fall short of the next one.
   * @returns 0 when there is enough, and where nobody can say
   */
  missingBytes(): Promise<number> {
    return this.#chain.missingBytes();
  }

  /**
   * Lets the VM go as it is, with the tracker armed for the next session.
   * @param options.release ends the tracker, too: the next session's first checkpoint reads all memory
   */
  async close({ release = false }: { readonly release?: boolean } = {}): Promise<void> {
    clearImmediate(this.#collection);
    await runAll([
      () => this.#source.pool.close(),
      () => (release ? this.#source.tracker.stop() : undefined),
      () => this.#source.tracker.close(),
      () => this.#chain.close(),
      () => this.#lock.release(),
      () => this.vm.close(),
    ]);
  }

  #lent(): AttemptDeps {
    return {
      vm: this.vm,
      vmName: this.vmName,
      repository: this.#options.repository,
      chain: this.#chain,
      ledger: this.#ledger,
      begun: this.#begun,
      policy: this.#policy,
      hook: this.#hook,
      source: this.#source,
      settings: { ...this.#options, maxPauseMs: this.#options.maxPauseMs ?? DEFAULT_MAX_PAUSE_MS },
      isCarried: this.#state?.carried ?? false,
      stateFor: (scope, parent) => this.#stateFor(scope, parent),
      checkUnchanged: () => this.#checkUnchanged(),
    };
  }

  /**
   * Has readers and tracker follow what the VM is now, after hotplug or when the tracker has lost its record.
   */
  async #followMemory(): Promise<void> {
    const isSame = async (): Promise<boolean> =>
      (await fingerprint(this.vm, this.#source.tracker)) === this.#source.fingerprint;
    if (!this.#sourceIsStale && (await isSame())) return;
    const before = this.#source;
    // Two trackers of one kind may share the record in the kernel: the old handle goes first. It stays usable
    // to be closed twice.
    before.tracker.close();
    this.#sourceIsStale = true;
    const pool = startPool(this.#options);
    try {
      this.#source = await openSource(this.vm, this.#options, pool);
    } catch (error) {
      await pool.close();
      throw error;
    }
    this.#sourceIsStale = false;
    // What the workers kept goes with the pool, and what was put back into the old tracker is not in the new
    // one.
    this.#state = undefined;
    await before.pool.close();
  }

  async #checkUnchanged(): Promise<void> {
    const now = await this.#memoryNow();
    if (now === undefined) return;
    const { report } = now;
    const escape =
      report.hazards.find(({ effect }) => effect === 'refuse') ?? escapeFrom(report, this.trackerKind);
    if (now.fingerprint === this.#source.fingerprint && escape === undefined) return;
    this.#sourceIsStale = true;
    const what = escape === undefined ? 'its memory was plugged, unplugged or resized' : escape.text;
    throw new CheckpointError(
      'VM_STATE',
      `the VM ${this.vm.address} changed during the checkpoint: ${what}`,
      {
        hint: 'the checkpoint is dropped; the next one follows the change',
        retryable: true,
        ...(escape === undefined ? {} : { detail: { hazard: escape.code } }),
      },
    );
  }

  /** Undefined when the VM has ended since its pause: what was captured is whole all the same. */
  async #memoryNow(): Promise<{ fingerprint: string; report: VmReport } | undefined> {
    try {
      const report = await this.vm.inspect();
      return { report, fingerprint: await fingerprint(this.vm, this.#source.tracker) };
    } catch (error) {
      if (isCheckpointError(error, 'VM_GONE')) return undefined;
      throw error;
    }
  }

  /**
   * The page map and the reader that go with `parent`; kept from checkpoint to checkpoint while nothing else
   * intervenes.
   */
  async #stateFor(scope: Scope, parent: Manifest | null): Promise<ChainState> {
    const { layout, pool } = this.#source;
    const from = scope.kind === 'base' ? null : parent;
    if (this.#state?.parentId === (from?.id ?? '') && sameLayout(this.#state.layout, layout))
      return this.#state;
    await pool.forget();
    const early = this.#early;
    this.#early = undefined;
    this.#state = await loadState(this.#chain, from, layout, early);
    return this.#state;
  }

  async #runQuietly(phase: 'committed' | 'failed' | 'uncertain', context: HookContext): Promise<void> {
    try {
      await this.#hook?.run(phase, context);
    } catch (error) {
      process.emitWarning(isCheckpointError(error) ? error.message : describeError(error));
    }
  }
}

interface SessionParts {
  readonly vm: Vm;
  readonly vmName: string;
  readonly chain: ChainWriter;
  readonly lock: VmLock;
  readonly ledger: Ledger;
  readonly begun: SnapshotRecord;
  readonly source: PageSource;
  readonly early: EarlyMap | undefined;
}

/**
 * Runs every step whatever becomes of the others. What fails is a warning: the work that mattered is done or
 * has its own error.
 */
async function runAll(steps: readonly (() => Promise<void> | void)[]): Promise<void> {
  for (const step of steps) {
    try {
      await step();
    } catch (error) {
      process.emitWarning(describeError(error));
    }
  }
}
