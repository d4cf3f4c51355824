/**
 * A VM attached for checkpoints: everything that a row of checkpoints shares. One-shot commands take one checkpoint and
 * close it; a watcher keeps it open, and with it the previous versions and the page map.
 */

import { performance } from 'node:perf_hooks';

import { describeError, isCheckpointError } from '../errors.js';
import type { DirtyTracker } from '../hypervisor/dirty-tracker.js';
import type { HypervisorRegistry } from '../hypervisor/hypervisor.js';
import type { MemoryLayout } from '../hypervisor/memory-layout.js';
import type { DiskSnapshotMode, Vm } from '../hypervisor/vm.js';
import type { SharePool } from '../pool/share-pool.js';
import type { ChainReader } from '../repository/chain-reader.js';
import type { ChainWriter } from '../repository/chain-writer.js';
import type { CheckpointWriter } from '../repository/checkpoint-writer.js';
import type { Manifest } from '../repository/manifest.js';
import { PageMap } from '../repository/page-map.js';
import type { Repository } from '../repository/repository.js';
import type { JsonObject } from '../types.js';
import { chainNameOf } from './chain-name.js';
import { CheckpointCycle } from './cycle.js';
import { planDisks } from './disk-plan.js';
import { faultPoint, type FaultPoint } from './fault-points.js';
import { CommandHook, type Hook, type HookContext } from './hooks.js';
import { Ledger } from './ledger.js';
import { DEFAULT_COMPRESSION_LEVEL, openPool } from './open-pool.js';
import { PageWriter } from './page-writer.js';
import { defaultRuntimeDir, openRuntimeDir } from './runtime-dir.js';
import { decideScope, type Scope } from './scope.js';
import { StopPolicy } from './stop-policy.js';
import { summaryFigures, type CheckpointProgress, type CheckpointSummary } from './summary.js';
import { chooseTracker } from './tracker-choice.js';
import { VmLock } from './vm-lock.js';

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
  readonly diskMode?: DiskSnapshotMode | 'auto' | undefined;
  /** Shell command, see `hooks.ts`. */
  readonly hook?: string | undefined;
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
  readonly trackerKind: string;
  /** Why a faster tracker is not in use; empty when the best one is. */
  readonly trackerReason: string;
  readonly #options: SessionOptions;
  readonly #chain: ChainWriter;
  readonly #lock: VmLock;
  readonly #ledger: Ledger;
  readonly #policy: StopPolicy;
  readonly #hook: Hook | undefined;
  #tracker: DirtyTracker;
  #layout: MemoryLayout;
  #pool: SharePool;
  #state: ChainState | undefined;

  private constructor(options: SessionOptions, parts: SessionParts) {
    this.#options = options;
    this.vm = parts.vm;
    this.vmName = parts.vmName;
    this.trackerKind = parts.tracker.kind;
    this.trackerReason = parts.trackerReason;
    this.#chain = parts.chain;
    this.#lock = parts.lock;
    this.#ledger = parts.ledger;
    this.#tracker = parts.tracker;
    this.#layout = parts.layout;
    this.#pool = parts.pool;
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
    const runtimeDir = await openRuntimeDir(options.runtimeDir ?? defaultRuntimeDir());
    const cleanUp: (() => Promise<void> | void)[] = [];
    try {
      const vm = await options.hypervisors
        .forAddress(options.vm)
        .attach(options.vm, { runtimeDir, signal: options.signal });
      cleanUp.push(() => vm.close());
      const lock = await VmLock.take(runtimeDir, vm.identity);
      cleanUp.push(() => lock.release());
      const vmName = options.name ?? chainNameOf(vm);
      const chain = await options.repository.openChainWriter(vmName, vm.identity, { signal: options.signal });
      cleanUp.push(() => chain.close());
      const layout = await vm.memoryLayout();
      const { tracker, reason } = await chooseTracker(vm, options.tracker ?? 'auto');
      cleanUp.push(() => tracker.close());
      const pool = await openPool(vm, options);
      return new CheckpointSession(options, {
        vm,
        vmName,
        chain,
        lock,
        ledger: new Ledger(runtimeDir, vm.identity),
        tracker,
        trackerReason: reason,
        layout,
        pool,
      });
    } catch (error) {
      for (const undo of cleanUp.reverse()) await undo();
      throw error;
    }
  }

  /** Takes one checkpoint. After a failure the session is good for another try. */
  async checkpoint(options: CheckpointOptions = {}): Promise<CheckpointSummary> {
    const started = performance.now();
    const { repository } = this.#options;
    const [disks, ledger] = await Promise.all([this.vm.disks(), this.#ledger.read(), this.#followLayout()]);
    const diskPlan = planDisks(disks, {
      memoryOnly: this.#options.memoryOnly ?? false,
      mode: this.#options.diskMode ?? 'auto',
      hookCoversDisks: this.#hook !== undefined,
    });
    const parent = this.#chain.latest;
    const scope = decideScope({
      forceBase: options.forceBase ?? false,
      parent,
      layout: this.#layout,
      ledger: this.#state?.carried === true && ledger !== undefined ? { ...ledger, state: 'clean' } : ledger,
      tracker: this.#tracker,
      repositoryId: repository.id,
      chain: this.vmName,
    });
    const state = await this.#stateFor(scope, parent);
    const writer = await this.#chain.begin({
      kind: scope.kind === 'base' ? 'base' : 'incremental',
      parent: scope.kind === 'base' ? null : parent,
      layout: this.#layout,
      map: state.map,
      level: this.#options.compressionLevel ?? DEFAULT_COMPRESSION_LEVEL,
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
    const owner = {
      token: this.#tracker.token,
      repositoryId: repository.id,
      chain: this.vmName,
      checkpointId: parent?.id ?? '',
    };
    const onProgress = options.onProgress ?? (() => undefined);
    const pages = new PageWriter({
      pool: this.#pool,
      writer,
      map: state.map,
      reader: state.reader,
      signal: this.#options.signal,
    });
    const cycle = new CheckpointCycle(this.#layout, scope, {
      vm: this.vm,
      tracker: this.#tracker,
      pool: this.#pool,
      pages,
      markZero: (zero) => writer.markZero(zero),
      policy: this.#policy,
      hook: this.#hook,
      hookContext: context,
      signal: this.#options.signal,
      onProgress,
    });
    try {
      await this.#ledger.write({ ...owner, state: 'owed' });
      const captured = await cycle.run(diskPlan);
      onProgress({ phase: 'commit', round: captured.rounds, donePages: 0, totalPages: 0 });
      await writer.setDeviceState(captured.deviceState);
      const figures = summaryFigures({
        scope,
        captured,
        totals: pages.totals,
        tracker: this.#tracker.kind,
        layout: this.#layout,
        vmName: this.vmName,
      });
      const manifest = await writer.commit({
        identity: this.vm.identity,
        machine: this.vm.machine,
        disks: captured.disks,
        runState: captured.runState,
        stats: { ...figures, totalMs: performance.now() - started } as unknown as JsonObject,
      });
      state.carried = false;
      state.parentId = manifest.id;
      await this.#ledger.write({ ...owner, state: 'clean', checkpointId: manifest.id });
      faultPoint('ledgerWritten');
      await this.#runQuietly('committed', context);
      return {
        ...figures,
        checkpointId: manifest.id,
        parentId: manifest.parentId,
        totalMs: performance.now() - started,
        storedBytes: writer.storedBytes,
      };
    } catch (error) {
      await this.#giveBack(cycle, writer, scope);
      await this.#runQuietly('failed', context);
      throw error;
    }
  }

  /** Lets the VM go as it is, with the tracker armed for the next session. */
  async close(): Promise<void> {
    await this.#pool.close();
    this.#tracker.close();
    await this.#chain.close();
    await this.#lock.release();
    await this.vm.close();
  }

  /** After hotplug: readers and tracker follow the new regions. */
  async #followLayout(): Promise<void> {
    const layout = await this.vm.memoryLayout();
    const known = JSON.stringify(this.#layout);
    if (JSON.stringify(layout) === known) return;
    this.#layout = layout;
    this.#tracker.close();
    this.#tracker = (await chooseTracker(this.vm, this.#tracker.kind)).tracker;
    await this.#pool.close();
    this.#pool = await openPool(this.vm, this.#options);
  }

  /** The page map and the reader that go with `parent`; kept from checkpoint to checkpoint while nothing else intervenes. */
  async #stateFor(scope: Scope, parent: Manifest | null): Promise<ChainState> {
    const parentId = scope.kind === 'base' ? '' : (parent?.id ?? '');
    if (this.#state?.parentId === parentId && this.#state.map.pageSpan === this.#layout.pageSpan)
      return this.#state;
    await this.#pool.forget();
    const map =
      scope.kind === 'base' || parent === null
        ? new PageMap(this.#layout.pageSpan)
        : (await this.#chain.loadMap(parent)).remap(parent.layout, this.#layout);
    this.#state = { parentId, map, reader: this.#chain.reader(), carried: false };
    return this.#state;
  }

  /** Failure: the harvested bits go back, and nothing that may be ahead of the repository is kept. */
  async #giveBack(cycle: CheckpointCycle, writer: CheckpointWriter, scope: Scope): Promise<void> {
    this.#tracker.putBack(cycle.harvested);
    await writer.abort();
    await this.#pool.forget().catch(() => undefined);
    if (cycle.snapshots.length > 0) {
      // The failure that led here is what the caller must hear of; what stays behind on the disks is said beside it.
      await this.vm
        .dropDiskSnapshots(cycle.snapshots)
        .catch((error: unknown) => process.emitWarning(describeError(error)));
    }
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

/** What of the chain is held in memory between checkpoints. */
interface ChainState {
  parentId: string;
  readonly map: PageMap;
  readonly reader: ChainReader;
  /** True after a failed checkpoint whose bits were put back in this process: the record is still unbroken here. */
  carried: boolean;
}

interface SessionParts {
  readonly vm: Vm;
  readonly vmName: string;
  readonly chain: ChainWriter;
  readonly lock: VmLock;
  readonly ledger: Ledger;
  readonly tracker: DirtyTracker;
  readonly trackerReason: string;
  readonly layout: MemoryLayout;
  readonly pool: SharePool;
}
