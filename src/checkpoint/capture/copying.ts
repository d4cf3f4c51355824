/**
 * Capture by copying out of the guest.
 *
 *     VM runs    harvest -> [copy + encode -> harvest]*  until the rest is small enough for the pause
 *     VM paused  stop -> harvest, copy | device state -> disks -> harvest, copy -> cont
 *     VM runs    encode
 *
 * Order is what makes it right: pages are read after the harvest that named them, so a write in between is
 * named by the next one; the last harvest comes after the device state was saved, because saving it may write
 * to guest memory.
 *
 * The repository is neither read nor written while the VM stands still: what was encoded before has been
 * written by then, and what is captured is encoded afterwards. `PauseRoom` has the memory for that.
 */

import { performance } from 'node:perf_hooks';

import type { DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import type { DiskPlan } from '../../disks/disk-plan.js';
import type { DiskSnapshot } from '../../hypervisor/disks.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import { faultPoint } from '../fault-points.js';
import { PendingPages } from '../pages/pending-pages.js';
import { phaseTimes, type Captured } from '../pause/captured.js';
import { Freeze } from '../pause/freeze.js';
import { runResumedHook } from '../pause/hooks.js';
import { PauseSnapshots } from '../pause/pause-snapshots.js';
import { Standstill } from '../pause/standstill.js';
import type { Stopwatch } from '../pause/stopwatch.js';
import { CaptureLog } from './capture-log.js';
import { DEFAULT_ROOM_PAGES, PauseRoom } from './pause-room.js';
import { startCheck, type Capture, type CaptureDeps, type Checked } from './capture.js';

/** Copied for practice before the pause: enough to pass every line of the copy. */
const REHEARSAL_PAGES = 64;

export class CopyingCapture implements Capture {
  readonly #deps: CaptureDeps;
  readonly #pending: PendingPages;
  readonly #log: CaptureLog;
  readonly #snapshots: PauseSnapshots;
  readonly #freeze: Freeze;
  readonly #room: PauseRoom;
  #roundStopsMs = 0;

  constructor(deps: CaptureDeps) {
    this.#deps = deps;
    this.#pending = new PendingPages(deps.layout.pageSpan);
    this.#log = new CaptureLog(deps.onProgress);
    this.#snapshots = new PauseSnapshots(deps.vm.disks);
    this.#freeze = new Freeze(deps.vm.freezer, deps.freezeLimitMs, deps.pauseLimitMs);
    this.#room = new PauseRoom(deps.pool, deps.roomPages);
  }

  get harvested(): DirtyBitmap {
    return this.#pending.harvested;
  }

  get snapshots(): readonly DiskSnapshot[] {
    return this.#snapshots.taken;
  }

  async run(diskPlan: DiskPlan): Promise<Captured & Checked> {
    const { vm, scope, layout, pages, markZero, policy, hook, hookContext, signal } = this.#deps;
    const freeze = this.#freeze;
    faultPoint('beforeHarvest');
    if (scope.kind !== 'dirty') this.#pending.addAll(layout);
    this.#harvest();
    faultPoint('afterHarvest');
    if ((await vm.runState.read()) === 'running') await this.#liveRounds();

    await hook?.run('before-pause', hookContext, signal);
    const wasAsked = await vm.disks.checkStorage();
    await this.#deps.mayPause();
    await freeze.freeze();
    await freeze.orThaw(async () => {
      await this.#rehearse(wasAsked || hook !== undefined || freeze.isWanted);
      signal?.throwIfAborted();
    });
    this.#log.pausing(this.#pending.count);

    const limitMs = this.#deps.pauseLimitMs;
    const pause = new Standstill({ vm, control: vm.runState, freeze, limitMs, signal });
    const { watch } = pause;
    const over = pause.signal;
    let pausePages = 0;
    await pause.during(async () => {
      await pause.stop();
      faultPoint('afterPause');
      pausePages += await this.#copyBesideDeviceState(watch);
      await this.#snapshots.take(diskPlan, hookContext.checkpointId, watch, over);
      if (hook !== undefined) await watch.time('hook', () => hook.run('paused', hookContext, over));
      over.throwIfAborted();
      this.#harvestIn(watch);
      pausePages += await this.#copyPending(watch);
      faultPoint('beforeResume');
      await pause.letGo();
    });
    const { pauseMs } = pause;
    faultPoint('afterResume');

    const phases = phaseTimes(watch, this.#roundStopsMs);
    policy.learn({
      totalMs: watch.elapsedMs(),
      copyMs: phases.copyMs,
      copiedBytes: pausePages * PAGE_SIZE_BYTES,
    });
    await runResumedHook(hook, hookContext, this.#log.warn, signal);
    const deviceState = await vm.deviceState.take();
    const unchanged = startCheck(this.#deps.checkUnchanged);
    // More pages than the working set are not worth keeping: it would be driven out.
    const admit = scope.kind === 'dirty' || pausePages <= DEFAULT_ROOM_PAGES;
    await pages.writeCaptured(admit, this.#log.counting('encode', pausePages));
    markZero(this.#pending.absentPages());
    return {
      deviceState,
      disks: this.#snapshots.taken,
      frozen: freeze.frozen,
      frozenMs: freeze.frozenMs,
      pauseMs,
      phases,
      rounds: this.#log.round,
      dirtyPages: this.#pending.touchedCount,
      pausePages,
      warnings: this.#log.warnings,
      runState: pause.wasRunning ? 'running' : 'paused',
      unchanged,
    };
  }

  /** Pre-copy: copies while the VM runs what would make the pause too long. */
  async #liveRounds(): Promise<void> {
    const { tracker, scope, policy, pages } = this.#deps;
    // A tracker that cannot tell what changed meanwhile makes every copy of a running VM worthless.
    if (!tracker.traits.seesWrites) return;
    let before: number | undefined;
    for (;;) {
      const left = this.#pending.count;
      if (this.#log.heed(policy.decide(this.#log.round, left, before), left)) return;
      this.#log.round++;
      before = left;
      await this.#settle();
      // In the first round of a full copy the pages are all of memory; later ones are the working set.
      const admit = scope.kind === 'dirty' || this.#log.round > 1;
      const taken = this.#pending.take();
      await pages.copyAndWrite(taken.present, admit, this.#log.counting('live', taken.presentCount));
      // Before the harvest: the next round, or the pause, is to find what was written meanwhile.
      await pages.written();
      this.#harvest();
    }
  }

  async #settle(): Promise<void> {
    const from = performance.now();
    const harvest = await this.#deps.tracker.traits.settle();
    if (harvest === undefined) return;
    this.#roundStopsMs += performance.now() - from;
    this.#pending.add(harvest);
  }

  /**
   * Does before the pause what will be done in it: touch the memory for the copies, copy a few pages. What
   * runs for the first time in the life of a process takes several times as long.
   * @param isLate the live phase has not harvested just now: a hook, a freeze or the question to the storage
   *   may have taken long
   */
  async #rehearse(isLate: boolean): Promise<void> {
    const { tracker, pool } = this.#deps;
    if (isLate && tracker.traits.seesWrites) this.#harvest();
    await this.#room.reserve(this.#pending.present());
    await pool.capture(this.#pending.sample(REHEARSAL_PAGES));
    await pool.reset();
  }

  /** Copies what is known by now while the hypervisor writes the device state. @returns pages copied */
  async #copyBesideDeviceState(watch: Stopwatch): Promise<number> {
    const { vm, tracker } = this.#deps;
    const { seesWrites, clearsOnlyAtRest, isLastCollectEnough } = tracker.traits;
    if (clearsOnlyAtRest) this.#harvestIn(watch);
    const saving = watch.time('deviceState', () => vm.deviceState.save());
    // Waited for below; until then its failure must not count as unhandled, which would end the process in
    // the pause.
    saving.catch(() => undefined);
    let copied = 0;
    try {
      // Comparing all pages twice would double the pause; everybody else gains from copying beside the device
      // state.
      if (seesWrites) {
        if (!clearsOnlyAtRest && !isLastCollectEnough()) this.#harvestIn(watch);
        copied = await this.#copyPending(watch);
      }
      faultPoint('duringCopy');
    } finally {
      await saving;
    }
    return copied;
  }

  #harvest(): void {
    this.#pending.add(this.#deps.tracker.collect());
  }

  #harvestIn(watch: Stopwatch): void {
    watch.timeSync('harvest', () => this.#harvest());
  }

  /** Inside the pause. @returns pages copied */
  async #copyPending(watch: Stopwatch): Promise<number> {
    const taken = this.#pending.take();
    if (taken.presentCount === 0) return 0;
    return watch.time('copy', () => this.#room.capture(taken.present));
  }
}
