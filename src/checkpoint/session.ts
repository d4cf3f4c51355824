/**
 * A VM attached for checkpoints: everything that a row of checkpoints shares. One-shot commands take one checkpoint and
 * close it; a watcher keeps it open, and with it the previous versions and the page map.
 */

import { performance } from 'node:perf_hooks';

import { CheckpointError, describeError, isCheckpointError } from '../errors.js';
import type { DirtyTracker } from '../hypervisor/dirty-tracker.js';
import type { DiskDriverOptions } from '../hypervisor/hypervisor.js';
import type { HypervisorRegistry } from '../hypervisor/registry.js';
import { sameLayout } from '../hypervisor/memory-layout.js';
import type { Vm, VmReport } from '../hypervisor/vm.js';
import { Calendar } from '../repository/forget/calendar.js';
import type { ChainWriter } from '../repository/chain-writer.js';
import type { CheckpointWriter } from '../repository/write/checkpoint-writer.js';
import type { ForgetOptions, ForgetResult, ForgottenCheckpoint } from '../repository/forget/forget.js';
import type { KeepPolicy } from '../repository/forget/keep-policy.js';
import type { Manifest } from '../format/manifest.js';
import type { Repository } from '../repository/repository.js';
import type { JsonObject } from '../types.js';
import { SnapshotRecord } from '../disks/begun-snapshots.js';
import { chainNameOf } from './trust/chain-name.js';
import { loadState, readEarly, type ChainState, type EarlyMap } from './trust/chain-state.js';
import { CheckpointCycle } from './cycle.js';
import { AUTO_DISK_MODE, planDisks, type DiskMode } from '../disks/disk-plan.js';
import { faultPoint, type FaultPoint } from './fault-points.js';
import { disksOfRunning, dropSnapshots, snapshotsOf, type LeftSnapshot } from '../disks/forgotten-disks.js';
import { CommandHook, type Hook, type HookContext } from './pause/hooks.js';
import { collectGarbage, letHeapGrow, returnMemory } from '../host/garbage.js';
import { Ledger } from './trust/ledger.js';
import { DEFAULT_COMPRESSION_LEVEL } from './pages/open-pool.js';
import { fingerprint, openSource, type PageSource } from './pages/page-source.js';
import { PageWriter } from './pages/page-writer.js';
import type { CheckpointProgress } from './progress.js';
import { defaultRuntimeDir, openRuntimeDir } from '../host/runtime-dir.js';
import { decideScope, type Scope } from './trust/scope.js';
import { StopPolicy } from './pause/stop-policy.js';
import { summaryFigures, type CheckpointSummary, type SummaryFigures } from './summary.js';
import { escapeFrom } from './trust/tracker-choice.js';
import { VmLock } from '../host/vm-lock.js';

export interface SessionOptions {
  readonly repository: Repository;
  readonly hypervisors: HypervisorRegistry;
  /** Such as qmp:/run/web1.qmp. */
  readonly vm: string;
  /** Name of the chain in the repository; default: the VM's own name, else its UUID. */
  readonly name?: string | undefined;
  /** `auto`, or the kind to insist on. */
  readonly tracker?: string | undefined;
  /** Budget for previous versions of pages. Default 256 MiB. */
  readonly cacheBytes?: number | undefined;
  /** Default: one a core, at most 4. */
  readonly workers?: number | undefined;
  /** zstd level, 0 = off. Default 3. */
  readonly compressionLevel?: number | undefined;
  /** Default 10. */
  readonly maxPauseMs?: number | undefined;
  readonly memoryOnly?: boolean | undefined;
  readonly diskMode?: DiskMode | undefined;
  /** See `AttachOptions.diskOptions`. */
  readonly diskOptions?: DiskDriverOptions | undefined;
  /** Shell command, see `hooks.ts`. */
  readonly hook?: string | undefined;
  /** See `AttachOptions.waitJobMs`. */
  readonly waitJobMs?: number | undefined;
  /** Freeze the guest's file systems for the pause by its agent, which gets this time for it; undefined: do not. */
  readonly freezeLimitMs?: number | undefined;
  /** See `AttachOptions.guestAgent`. */
  readonly guestAgent?: string | undefined;
  /** Keep the records of a long chain together, at some cost in time and space every few checkpoints; default true. */
  readonly regroup?: boolean | undefined;
  readonly runtimeDir?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface CheckpointOptions {
  /** Start a new base although there is a parent. */
  readonly forceBase?: boolean;
  readonly onProgress?: (progress: CheckpointProgress) => void;
}

export const DEFAULT_MAX_PAUSE_MS = 10;
const MAX_ROUNDS = 12;

const FAULT_POINT_OF_WRITER: Readonly<Record<string, FaultPoint>> = {
  'before-pack': 'packWritten',
  'pack-durable': 'packDurable',
  'index-durable': 'indexDurable',
  'after-manifest': 'manifestDurable',
};

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
  /** The tracker lost the VM or must no longer be trusted: choose one anew before the next checkpoint. */
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
   * Attaches, takes both locks (of the running VM and of its chain), arms or takes over the tracker.
   * @throws VM_ADDRESS, VM_UNREACHABLE, VM_BUSY, VM_PERMISSION, VM_LOCKED, REPO_LOCKED, CHAIN_WRONG_VM, TRACKER_UNAVAILABLE
   */
  static async open(options: SessionOptions): Promise<CheckpointSession> {
    letHeapGrow();
    const runtimeDir = await openRuntimeDir(options.runtimeDir ?? defaultRuntimeDir());
    const cleanUp: (() => Promise<void> | void)[] = [];
    try {
      const vm = await options.hypervisors.forAddress(options.vm).attach(options.vm, {
        runtimeDir,
        waitJobMs: options.waitJobMs,
        guestAgent: options.guestAgent,
        diskOptions: options.diskOptions,
        signal: options.signal,
      });
      cleanUp.push(() => vm.close());
      const lock = await VmLock.take(vm.identity);
      cleanUp.push(() => lock.release());
      const vmName = options.name ?? chainNameOf(vm);
      const chain = await options.repository.openChainWriter(vmName, vm.identity, { signal: options.signal });
      cleanUp.push(() => chain.close());
      const early = readEarly(chain);
      const source = await openSource(vm, options);
      const ledger = new Ledger(runtimeDir, vm.identity);
      const begun = new SnapshotRecord(runtimeDir, vm, options.repository.id);
      return new CheckpointSession(options, { vm, vmName, chain, lock, ledger, begun, source, early });
    } catch (error) {
      await runAll(cleanUp.reverse());
      throw error;
    }
  }

  get trackerKind(): string {
    return this.#source.tracker.kind;
  }

  /** Why a faster tracker is not in use; empty when the best one is. */
  get trackerReason(): string {
    return this.#source.reason;
  }

  /** Takes one checkpoint. After a failure the session is good for another try. */
  async checkpoint(options: CheckpointOptions = {}): Promise<CheckpointSummary> {
    const started = performance.now();
    const { repository } = this.#options;
    await this.#followMemory();
    const { tracker, layout, pool } = this.#source;
    this.#checkFreeze(tracker);
    const [disks, ledger] = await Promise.all([this.vm.disks.list(), this.#ledger.read()]);
    const diskPlan = planDisks(disks, this.vm.disks.drivers, {
      memoryOnly: this.#options.memoryOnly ?? false,
      mode: this.#options.diskMode ?? AUTO_DISK_MODE,
      hookCoversDisks: this.#hook !== undefined,
    });
    const parent = this.#chain.latest;
    // Asked once: to ask may begin a new record, and what is decided must be about the one that the ledger names.
    const { token } = tracker;
    const scope = decideScope({
      forceBase: options.forceBase ?? false,
      parent,
      layout,
      ledger: this.#state?.carried === true && ledger !== undefined ? { ...ledger, state: 'clean' } : ledger,
      tracker: { kind: tracker.kind, token },
      trackerReason: this.trackerReason,
      repositoryId: repository.id,
      chain: this.vmName,
    });
    const owner = {
      token,
      repositoryId: repository.id,
      chain: this.vmName,
      checkpointId: parent?.id ?? '',
    };
    const state = await this.#stateFor(scope, parent);
    const writer = await this.#chain.begin({
      kind: scope.kind === 'base' ? 'base' : 'incremental',
      parent: scope.kind === 'base' ? null : parent,
      layout,
      map: state.map,
      level: this.#options.compressionLevel ?? DEFAULT_COMPRESSION_LEVEL,
      regroupFrom: (this.#options.regroup ?? true) ? state.reader : undefined,
      onPoint: (point) => {
        const name = FAULT_POINT_OF_WRITER[point];
        if (name !== undefined) faultPoint(name);
      },
    });
    const context: HookContext = {
      checkpointId: writer.id,
      vmAddress: this.#options.vm,
      vmName: this.vmName,
      repository: repository.backend.properties.location,
    };
    const onProgress = options.onProgress ?? (() => undefined);
    const pages = new PageWriter({
      pool,
      writer,
      map: state.map,
      reader: state.reader,
      signal: this.#options.signal,
    });
    const cycle = new CheckpointCycle(layout, scope, {
      vm: this.vm,
      tracker,
      pool,
      pages,
      markZero: (zero) => writer.markZero(zero),
      policy: this.#policy,
      hook: this.#hook,
      hookContext: context,
      freezeLimitMs: this.#options.freezeLimitMs,
      checkUnchanged: () => this.#checkUnchanged(),
      signal: this.#options.signal,
      onProgress,
    });
    let figures: SummaryFigures;
    let manifest: Manifest;
    try {
      await this.#ledger.write({ ...owner, state: 'owed' });
      await this.#begun.add(writer.id, diskPlan);
      const captured = await cycle.run(diskPlan);
      onProgress({ phase: 'commit', round: captured.rounds, donePages: 0, totalPages: 0 });
      // The index of all pages is about to be made, out of several arrays of their number.
      if (scope.kind !== 'dirty') returnMemory();
      await writer.setDeviceState(captured.deviceState);
      figures = summaryFigures({
        scope,
        captured,
        totals: pages.totals,
        tracker: tracker.kind,
        layout,
        vmName: this.vmName,
      });
      manifest = await writer.commit({
        identity: this.vm.identity,
        machine: this.vm.machine,
        disks: captured.disks,
        frozen: captured.frozen,
        runState: captured.runState,
        allowed: captured.unchanged,
        stats: { ...figures, totalMs: performance.now() - started } as unknown as JsonObject,
      });
    } catch (error) {
      await this.#giveBack(cycle, writer, scope, error);
      await this.#runQuietly('failed', context);
      throw error;
    }
    // From here on the checkpoint is there, whatever happens: nothing below may fail it.
    const warnings = [...figures.warnings, ...writer.warnings];
    state.carried = false;
    state.parentId = manifest.id;
    try {
      await this.#ledger.write({ ...owner, state: 'clean', checkpointId: manifest.id });
    } catch (error) {
      warnings.push(
        `the next checkpoint will compare all pages, because the ledger could not be written: ${describeError(error)}`,
      );
    }
    faultPoint('ledgerWritten');
    warnings.push(...(await this.#begun.settle((id) => this.#isCommitted(id))));
    const totalMs = performance.now() - started;
    await this.#runQuietly('committed', context);
    const hasTakenMuch = scope.kind !== 'dirty' || writer.regrouped.pages > 0;
    this.#collection = setImmediate(() => (hasTakenMuch ? returnMemory() : collectGarbage()));
    return {
      ...figures,
      warnings,
      checkpointId: manifest.id,
      parentId: manifest.parentId,
      totalMs,
      storedBytes: writer.storedBytes,
      regroupedPages: writer.regrouped.pages,
      regroupedBytes: writer.regrouped.storedBytes,
      regroupMs: writer.regrouped.ms,
    };
  }

  /**
   * Between checkpoints: forgets those of the chain that a policy does not keep. The newest one stays, and with it what the tracker counts from.
   * @param options.withDisks removes their disk snapshots too, where that is possible
   * @throws see `forget`
   */
  async forget(
    policy: KeepPolicy,
    options: Pick<ForgetOptions, 'thinAbove' | 'signal'> & { readonly withDisks?: boolean } = {},
  ): Promise<ForgetResult & { readonly disks: readonly LeftSnapshot[] }> {
    let disks: readonly LeftSnapshot[] = [];
    const { withDisks = false, ...more } = options;
    const onForgotten = async (removed: readonly ForgottenCheckpoint[]): Promise<void> => {
      const gone = removed.flatMap(({ manifest }) => manifest ?? []);
      const disksOf = disksOfRunning(this.vm);
      disks = withDisks ? await dropSnapshots(gone, disksOf) : snapshotsOf(gone, disksOf);
    };
    // What the workers and the map keep are versions that the newest checkpoint has, so they stay good.
    const result = await this.#chain.forget(policy, new Calendar(), { ...more, onForgotten });
    return { ...result, disks };
  }

  /** Lets the VM go as it is, with the tracker armed for the next session. */
  async close(): Promise<void> {
    clearImmediate(this.#collection);
    await runAll([
      () => this.#source.pool.close(),
      () => this.#source.tracker.close(),
      () => this.#chain.close(),
      () => this.#lock.release(),
      () => this.vm.close(),
    ]);
  }

  /** @throws VM_UNSUPPORTED before anything is done */
  #checkFreeze(tracker: DirtyTracker): void {
    if (this.#options.freezeLimitMs === undefined) return;
    if (this.vm.freeze === undefined || this.vm.thaw === undefined) {
      throw new CheckpointError(
        'VM_UNSUPPORTED',
        `there is no guest agent to freeze ${this.#options.vm} with`,
        {
          hint: 'freeze in a --hook, phase before-pause, and thaw in phases resumed and failed',
        },
      );
    }
    if (tracker.picture === undefined) return;
    // The guest would be frozen for as long as all its memory takes to be sent.
    throw new CheckpointError('VM_UNSUPPORTED', `--freeze cannot be used with the tracker ${tracker.kind}`, {
      hint: 'use another tracker, or leave --freeze away',
    });
  }

  /** After hotplug, or when the tracker lost its record: readers and tracker follow what the VM is now. */
  async #followMemory(): Promise<void> {
    const isSame = (await fingerprint(this.vm)) === this.#source.fingerprint;
    if (isSame && !this.#sourceIsStale) return;
    const before = this.#source;
    // Two trackers of one kind may share the record in the kernel: the old handle goes first. It stays usable to be closed twice.
    before.tracker.close();
    this.#sourceIsStale = true;
    this.#source = await openSource(this.vm, this.#options);
    this.#sourceIsStale = false;
    // What the workers kept goes with the pool, and what was put back into the old tracker is not in the new one.
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
      return { report, fingerprint: await fingerprint(this.vm) };
    } catch (error) {
      if (isCheckpointError(error, 'VM_GONE')) return undefined;
      throw error;
    }
  }

  /** The page map and the reader that go with `parent`; kept from checkpoint to checkpoint while nothing else intervenes. */
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

  /** Whether there is a manifest, readable or not. */
  async #isCommitted(checkpointId: string): Promise<boolean> {
    try {
      await this.#options.repository.locate(checkpointId, this.vmName);
      return true;
    } catch (error) {
      if (isCheckpointError(error, 'CHECKPOINT_NOT_FOUND')) return false;
      throw error;
    }
  }

  /** Failure: the harvested bits go back, and nothing that may be ahead of the repository is kept. */
  async #giveBack(
    cycle: CheckpointCycle,
    writer: CheckpointWriter,
    scope: Scope,
    cause: unknown,
  ): Promise<void> {
    const { tracker, pool } = this.#source;
    if (isCheckpointError(cause, 'TRACKER_OFF')) this.#sourceIsStale = true;
    else {
      try {
        tracker.putBack(cycle.harvested);
      } catch {
        // A new tracker compares all pages; the writer must be aborted whatever becomes of this one.
        this.#sourceIsStale = true;
      }
    }
    const isAbsent = await writer.abort();
    await pool.forget().catch(() => undefined);
    // A manifest that may be there after all needs its disk snapshots.
    if (isAbsent) await this.#begun.dropFailed(writer.id, cycle.snapshots, cause);
    // What was put back is known to this process only: the ledger keeps saying "owed" to every other one.
    if (this.#state !== undefined) this.#state.carried = scope.kind === 'dirty';
  }

  async #runQuietly(phase: 'committed' | 'failed', context: HookContext): Promise<void> {
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

/** Runs every step whatever becomes of the others. What fails is a warning: the work that mattered is done or has its own error. */
async function runAll(steps: readonly (() => Promise<void> | void)[]): Promise<void> {
  for (const step of steps) {
    try {
      await step();
    } catch (error) {
      process.emitWarning(describeError(error));
    }
  }
}
