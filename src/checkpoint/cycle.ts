/**
 * One checkpoint, from the first harvest to the durable manifest.
 *
 *     VM runs    harvest -> [copy + encode -> harvest]*  until the rest is small enough for the pause
 *     VM paused  stop -> harvest, copy | device state -> disks -> harvest, copy -> cont
 *     VM runs    encode -> packs -> index -> manifest (the commit)
 *
 * With a tracker that brings a picture of the memory (`MemoryPicture`), the hypervisor does the live phase and the last copy:
 *
 *     VM runs    picture.approach
 *     VM paused  stop -> disks -> last pages and device state -> cont
 *     VM runs    harvest -> copy + encode -> packs -> index -> manifest
 *
 * Order is what makes it right: pages are read after the harvest that named them, so a write in between is named by
 * the next one; the last harvest comes after the device state was saved, because saving it may write to guest memory.
 *
 * What is harvested is owed until the manifest is durable: any failure gives it back to the tracker. The VM is
 * left in the run state it was found in, on every path.
 */

import { performance } from 'node:perf_hooks';

import { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import { CheckpointError, isCheckpointError } from '../errors.js';
import type { DirtyTracker, MemoryPicture } from '../hypervisor/dirty-tracker.js';
import type { MemoryLayout } from '../hypervisor/memory-layout.js';
import type { DiskPlan } from '../disks/disk-plan.js';
import type { DiskSnapshot } from '../hypervisor/disks.js';
import type { FrozenGuest, Vm } from '../hypervisor/vm.js';
import type { SharePool } from '../pool/share-pool.js';
import { PAGE_SIZE_BYTES, expandRuns } from '../types.js';
import type { Captured, PhaseTimes } from './pause/captured.js';
import { faultPoint } from './fault-points.js';
import type { Hook, HookContext } from './pause/hooks.js';
import type { PageWriter } from './pages/page-writer.js';
import { PendingPages, type TakenPages } from './pages/pending-pages.js';
import type { CheckpointProgress } from './progress.js';
import type { Scope } from './trust/scope.js';
import type { StopPolicy } from './pause/stop-policy.js';
import { Stopwatch } from './pause/stopwatch.js';

/** Captured pages held from the pause until they are encoded; beyond it pages are encoded inside the pause. */
const STAGING_PAGES = (256 << 20) / PAGE_SIZE_BYTES;

/** Copied for practice before the pause: enough to pass every line of the copy. */
const REHEARSAL_PAGES = 64;

export interface CycleDeps {
  readonly vm: Vm;
  readonly tracker: DirtyTracker;
  readonly pool: SharePool;
  readonly pages: PageWriter;
  readonly markZero: (pages: Uint32Array) => void;
  readonly policy: StopPolicy;
  readonly hook: Hook | undefined;
  readonly hookContext: HookContext;
  /** Freeze the guest's file systems for the pause, with this limit; undefined: do not. */
  readonly freezeLimitMs: number | undefined;
  /**
   * Proves, once the VM runs again, that regions and devices are still those that the session opened its tracker for.
   * @throws VM_STATE when they are not
   */
  readonly checkUnchanged: () => Promise<void>;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: (progress: CheckpointProgress) => void;
}

export interface Checked {
  /** `checkUnchanged`, under way: the checkpoint must not be committed before it is settled, nor when it fails. */
  readonly unchanged: Promise<void>;
}

export class CheckpointCycle {
  readonly #deps: CycleDeps;
  readonly #layout: MemoryLayout;
  readonly #scope: Scope;
  readonly #pending: PendingPages;
  /** Pages whose last word is "no memory behind it"; recorded as zero after everything else is written. */
  readonly #absent: DirtyBitmap;
  readonly #warnings: string[] = [];
  #round = 0;
  #roundStopsMs = 0;
  #snapshots: readonly DiskSnapshot[] = [];
  #frozen: FrozenGuest | undefined;
  /** When the guest's file systems were frozen; undefined when they are not. */
  #frozenSince: number | undefined;
  #frozenMs = 0;

  constructor(layout: MemoryLayout, scope: Scope, deps: CycleDeps) {
    this.#deps = deps;
    this.#layout = layout;
    this.#scope = scope;
    this.#pending = new PendingPages(layout.pageSpan);
    this.#absent = new DirtyBitmap(layout.pageSpan);
  }

  /** Everything collected so far, to be put back when the checkpoint fails. */
  get harvested(): DirtyBitmap {
    return this.#pending.harvested;
  }

  /** Disk snapshots taken so far, to be dropped when the checkpoint fails. */
  get snapshots(): readonly DiskSnapshot[] {
    return this.#snapshots;
  }

  async run(diskPlan: DiskPlan): Promise<Captured & Checked> {
    const { vm } = this.#deps;
    faultPoint('beforeHarvest');
    if (this.#scope.kind !== 'dirty') this.#pending.addAll(this.#layout);
    this.#pending.add(this.#deps.tracker.collect());
    faultPoint('afterHarvest');
    if ((await vm.runState()) === 'running') await this.#liveRounds();
    const captured = await this.#pause(diskPlan);
    // Asked while pages are encoded and written; waited for before the manifest. Until then its failure must not count as unhandled.
    const unchanged = this.#deps.checkUnchanged();
    unchanged.catch(() => undefined);
    if (this.#deps.tracker.picture === undefined)
      await this.#deps.pages.writeCaptured(this.#reporter('encode', captured.pausePages));
    else await this.#writePicture();
    this.#deps.markZero(expandRuns(this.#absent.toRuns()));
    return { ...captured, dirtyPages: this.#pending.touchedCount, unchanged };
  }

  /** Pre-copy: copies while the VM runs what would make the pause too long. */
  async #liveRounds(): Promise<void> {
    const { tracker, policy, pages } = this.#deps;
    // A tracker that cannot tell what changed meanwhile makes every copy of a running VM worthless.
    if (tracker.kind === 'compare' || tracker.picture !== undefined) return;
    let before: number | undefined;
    for (;;) {
      const left = this.#pending.count;
      const decision = policy.decide(this.#round, left, before);
      if (decision === 'stop') return;
      if (decision === 'stop-hopeless') {
        this.#warnHopeless(left);
        return;
      }
      this.#round++;
      before = left;
      await this.#settle();
      // In the first round of a full copy the pages are all of memory; later ones are the working set.
      const admit = this.#scope.kind === 'dirty' || this.#round > 1;
      const taken = this.#take();
      await pages.copyAndWrite(taken.present, admit, this.#reporter('live', taken.presentCount));
      this.#pending.add(tracker.collect());
    }
  }

  async #settle(): Promise<void> {
    const { tracker } = this.#deps;
    const from = performance.now();
    const harvest = await tracker.settle?.();
    if (harvest === undefined) return;
    this.#roundStopsMs += performance.now() - from;
    this.#pending.add(harvest);
  }

  async #pause(diskPlan: DiskPlan): Promise<Captured> {
    const { vm, tracker, policy, hook, hookContext } = this.#deps;
    await hook?.run('before-pause', hookContext);
    const wasAsked = await vm.disks.checkStorage();
    await this.#freeze();
    const { picture } = tracker;
    try {
      if (picture === undefined) await this.#rehearse(wasAsked);
      this.#deps.signal?.throwIfAborted();
    } catch (error) {
      await this.#thaw();
      throw error;
    }
    if (picture === undefined) this.#reportPause();

    let watch = new Stopwatch();
    let pausePages = 0;
    let resumed = false;
    let wasRunning: boolean;
    try {
      if (picture !== undefined) {
        watch = new Stopwatch(await this.#approach(picture));
        this.#reportPause();
      }
      const from = watch.elapsedMs();
      wasRunning = await vm.pause(() => watch.start());
      watch.since('stop', picture === undefined ? 0 : from);
      faultPoint('afterPause');
      const isHarvested = tracker.clearsOnlyAtRest === true;
      if (isHarvested) this.#harvest(watch);
      const saveDeviceState = (): Promise<void> => watch.time('deviceState', () => vm.saveDeviceState());
      // It finishes a picture, so disks and hook come before it then.
      const saving = picture === undefined ? saveDeviceState() : undefined;
      // Waited for below; until then its failure must not count as unhandled, which would end the process in the pause.
      saving?.catch(() => undefined);
      try {
        // Comparing all pages twice would double the pause; everybody else gains from copying beside the device state.
        if (tracker.kind !== 'compare' && picture === undefined)
          pausePages += await this.#copyPending(watch, isHarvested || tracker.isLastCollectEnough === true);
        faultPoint('duringCopy');
      } finally {
        await saving;
      }
      for (const { disks, driver } of diskPlan) {
        const taken = await watch.time('disks', () =>
          vm.disks.snapshot(hookContext.checkpointId, disks, driver),
        );
        this.#snapshots = [...this.#snapshots, ...taken];
      }
      if (hook !== undefined) await watch.time('hook', () => hook.run('paused', hookContext));
      if (picture === undefined) pausePages += await this.#copyPending(watch);
      else await saveDeviceState();
      faultPoint('beforeResume');
      resumed = true;
      if (wasRunning) {
        const resuming = watch.elapsedMs();
        await resumeOnceMore(vm, () => watch.stop());
        watch.stop();
        watch.since('resume', resuming);
      } else await stillPaused(vm);
    } catch (error) {
      // `resume` leaves a VM alone that `pause` did not stop.
      if (!resumed) {
        await resumeAfterFailure(vm, error).catch(async (notResumed: unknown) => {
          // It cannot thaw while it stands still, and that it does is the worse news.
          await this.#thaw().catch(() => undefined);
          throw notResumed;
        });
      }
      await this.#thaw();
      throw error;
    }
    await this.#thaw();
    const pauseMs = wasRunning ? watch.elapsedMs() : 0;
    faultPoint('afterResume');
    const phases = { ...phaseTimes(watch), roundStopsMs: this.#roundStopsMs };
    // How long a picture takes says nothing about copying.
    if (picture === undefined) {
      policy.learn({
        totalMs: watch.elapsedMs(),
        copyMs: phases.copyMs,
        copiedBytes: pausePages * PAGE_SIZE_BYTES,
      });
    }
    try {
      await hook?.run('resumed', hookContext);
    } catch (error) {
      if (!isCheckpointError(error, 'HOOK_FAILED')) throw error;
      this.#warnings.push(error.message);
    }
    const deviceState = await vm.takeDeviceState();
    if (picture !== undefined) pausePages = picture.pausePages;
    return {
      deviceState,
      disks: this.#snapshots,
      frozen: this.#frozen,
      frozenMs: this.#frozenMs,
      pauseMs,
      phases,
      rounds: this.#round,
      dirtyPages: this.#pending.touchedCount,
      pausePages,
      warnings: this.#warnings,
      runState: wasRunning ? 'running' : 'paused',
    };
  }

  async #freeze(): Promise<void> {
    const { vm, freezeLimitMs } = this.#deps;
    if (freezeLimitMs === undefined) return;
    const fileSystemCount = (await vm.freeze?.(freezeLimitMs)) ?? 0;
    this.#frozenSince = performance.now();
    this.#frozen = { fileSystemCount };
    faultPoint('afterFreeze');
  }

  /** A guest that stays frozen is worse than a checkpoint that fails, so this failure counts before all others. @throws GUEST_FROZEN */
  async #thaw(): Promise<void> {
    if (this.#frozenSince === undefined) return;
    const since = this.#frozenSince;
    this.#frozenSince = undefined;
    await this.#deps.vm.thaw?.();
    this.#frozenMs = performance.now() - since;
  }

  /** The live phase of a picture. @returns when the VM was stopped, if it was */
  #approach(picture: MemoryPicture): Promise<number | undefined> {
    const { policy, signal, onProgress } = this.#deps;
    return picture.approach({
      decide: (round, pagesLeft, before, bytesPerMs) => {
        const decision = policy.decide(round, pagesLeft, before, bytesPerMs);
        if (decision === 'stop-hopeless') this.#warnHopeless(pagesLeft);
        return decision !== 'another-round';
      },
      signal,
      onRound: (round, pagesLeft) => {
        this.#round = round;
        onProgress({ phase: 'live', round, donePages: 0, totalPages: pagesLeft });
      },
    });
  }

  /** Pages of a picture are copied and encoded when the VM runs again. */
  async #writePicture(): Promise<void> {
    this.#pending.add(this.#deps.tracker.collect());
    const taken = this.#take();
    const admit = this.#scope.kind === 'dirty';
    await this.#deps.pages.copyAndWrite(taken.present, admit, this.#reporter('encode', taken.presentCount));
  }

  #reportPause(): void {
    const totalPages = this.#pending.count;
    this.#deps.onProgress({ phase: 'paused', round: this.#round, donePages: 0, totalPages });
  }

  #warnHopeless(pagesLeft: number): void {
    this.#warnings.push(
      `the VM writes faster than it can be copied: after ${this.#round} rounds ${pagesLeft} pages were left for the pause`,
    );
  }

  /**
   * Does before the pause what will be done in it: touch the memory for the copies, copy a few pages. What runs for the first time
   * in the life of a process takes several times as long. Harvests as well where a hook, a freeze or the question to the storage may
   * have taken long; otherwise the live phase has just done so.
   */
  async #rehearse(wasAsked: boolean): Promise<void> {
    const { tracker, pool, hook, freezeLimitMs } = this.#deps;
    const isLate = wasAsked || hook !== undefined || freezeLimitMs !== undefined;
    if (isLate && tracker.kind !== 'compare') this.#pending.add(tracker.collect());
    await pool.reset();
    await pool.reserve(Math.min(STAGING_PAGES, Math.ceil(this.#pending.count * 1.25) + 256));
    await pool.capture(this.#pending.sample(REHEARSAL_PAGES));
    await pool.reset();
  }

  #harvest(watch: Stopwatch): void {
    watch.timeSync('harvest', () => this.#pending.add(this.#deps.tracker.collect()));
  }

  /** Harvests, unless what is known already will do, and copies inside the pause. @returns pages copied */
  async #copyPending(watch: Stopwatch, isHarvested = false): Promise<number> {
    const { pool, pages } = this.#deps;
    if (!isHarvested) this.#harvest(watch);
    const taken = this.#take();
    if (taken.presentCount === 0) return 0;
    if (taken.presentCount > STAGING_PAGES) {
      await watch.time('copy', async () => {
        await pages.writeCaptured(() => undefined);
        await pages.copyAndWrite(taken.present, false, this.#reporter('paused', taken.presentCount));
      });
      return taken.presentCount;
    }
    return watch.time('copy', () => pool.capture(taken.present));
  }

  #take(): TakenPages {
    const taken = this.#pending.take();
    this.#absent.clearRuns(taken.present);
    this.#absent.setRuns(taken.absent);
    return taken;
  }

  #reporter(phase: CheckpointProgress['phase'], totalPages: number): (pageCount: number) => void {
    let donePages = 0;
    return (pageCount) => {
      donePages += pageCount;
      this.#deps.onProgress({ phase, round: this.#round, donePages, totalPages });
    };
  }
}

/** A VM that was found paused may be resumed by its owner at any moment, and what was read is then not of one moment. */
async function stillPaused(vm: Vm): Promise<void> {
  if ((await vm.runState()) === 'paused') return;
  throw new CheckpointError('VM_STATE', `the VM ${vm.address} was resumed while its checkpoint was taken`, {
    hint: 'the checkpoint is dropped; take another',
    retryable: true,
  });
}

/** A VM left paused is worse than a late one: what fails for want of an answer is asked for a second time. */
async function resumeOnceMore(vm: Vm, running?: () => void): Promise<void> {
  try {
    await vm.resume(running);
  } catch (error) {
    if (isCheckpointError(error, 'VM_GONE') || isCheckpointError(error, 'VM_STATE')) throw error;
    await vm.resume(running);
  }
}

/** Resumes a VM that this checkpoint paused. When that fails too, the failure to resume is what matters most. */
async function resumeAfterFailure(vm: Vm, cause: unknown): Promise<void> {
  try {
    await resumeOnceMore(vm);
  } catch (error) {
    // Gone, or resumed by somebody else: there is nothing left to resume.
    if (isCheckpointError(error, 'VM_GONE') || isCheckpointError(error, 'VM_STATE')) return;
    const known = isCheckpointError(error, 'VM_NOT_RESUMED') ? error : undefined;
    throw new CheckpointError(
      'VM_NOT_RESUMED',
      `the VM ${vm.address} was paused for a checkpoint and could not be resumed${known === undefined ? '' : `: ${known.message}`}`,
      {
        cause: isCheckpointError(cause) ? cause : error,
        hint: known?.hint ?? 'resume it by hand: `cont` in the QEMU monitor, or `virsh resume`',
      },
    );
  }
}

function phaseTimes(watch: Stopwatch): Omit<PhaseTimes, 'roundStopsMs'> {
  return {
    stopMs: watch.total('stop'),
    harvestMs: watch.total('harvest'),
    copyMs: watch.total('copy'),
    deviceStateMs: watch.total('deviceState'),
    disksMs: watch.total('disks'),
    hookMs: watch.total('hook'),
    resumeMs: watch.total('resume'),
  };
}
