/**
 * Capture of the picture that the hypervisor sends.
 *
 *     VM runs    harvest -> approach: the hypervisor sends memory, pass after pass
 *     VM paused  stop -> disks -> last pages and device state -> cont
 *     VM runs    harvest -> copy out of the picture + encode
 *
 * Nothing of guest memory is read here. The picture is whole and still once the device state was taken, so
 * the harvest after that names all that is in it, and nothing that the VM has written since.
 */

import type { DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import type { DiskPlan } from '../../disks/disk-plan.js';
import type { MemoryPicture } from '../../hypervisor/dirty-tracker.js';
import type { DiskSnapshot } from '../../hypervisor/disks.js';
import { faultPoint } from '../fault-points.js';
import { PendingPages } from '../pages/pending-pages.js';
import { phaseTimes, type Captured } from '../pause/captured.js';
import { Freeze } from '../pause/freeze.js';
import { runResumedHook } from '../pause/hooks.js';
import { PauseSnapshots } from '../pause/pause-snapshots.js';
import { Standstill } from '../pause/standstill.js';
import { CaptureLog } from './capture-log.js';
import { startCheck, type Capture, type CaptureDeps, type Checked } from './capture.js';

export class PictureCapture implements Capture {
  readonly #deps: CaptureDeps;
  readonly #picture: MemoryPicture;
  readonly #pending: PendingPages;
  readonly #log: CaptureLog;
  readonly #snapshots: PauseSnapshots;

  constructor(picture: MemoryPicture, deps: CaptureDeps) {
    this.#deps = deps;
    this.#picture = picture;
    this.#pending = new PendingPages(deps.layout.pageSpan);
    this.#log = new CaptureLog(deps.onProgress);
    this.#snapshots = new PauseSnapshots(deps.vm.disks);
  }

  get harvested(): DirtyBitmap {
    return this.#pending.harvested;
  }

  get snapshots(): readonly DiskSnapshot[] {
    return this.#snapshots.taken;
  }

  async run(diskPlan: DiskPlan): Promise<Captured & Checked> {
    const { vm, tracker, scope, layout, pages, markZero, hook, hookContext, signal } = this.#deps;
    const picture = this.#picture;
    faultPoint('beforeHarvest');
    if (scope.kind !== 'dirty') this.#pending.addAll(layout);
    this.#pending.add(tracker.collect());
    faultPoint('afterHarvest');

    await hook?.run('before-pause', hookContext, signal);
    await vm.disks.checkStorage();
    await this.#deps.mayPause();
    signal?.throwIfAborted();

    // Frozen file systems would stay so for as long as all memory takes to be sent: `Attempt` refuses it.
    const freeze = new Freeze(undefined, undefined);
    const limitMs = this.#deps.pauseLimitMs;
    const pause = new Standstill({ vm, control: picture.runState, freeze, limitMs, signal });
    const { watch } = pause;
    const over = pause.signal;
    await pause.during(async () => {
      watch.start(await this.#approach());
      this.#log.pausing(this.#pending.count);
      await pause.finishStop();
      faultPoint('afterPause');
      faultPoint('duringCopy');
      await this.#snapshots.take(diskPlan, hookContext.checkpointId, watch, over);
      if (hook !== undefined) await watch.time('hook', () => hook.run('paused', hookContext, over));
      over.throwIfAborted();
      await watch.time('deviceState', () => picture.deviceState.save());
      faultPoint('beforeResume');
      await pause.letGo();
    });
    const { pauseMs } = pause;
    faultPoint('afterResume');

    await runResumedHook(hook, hookContext, this.#log.warn, signal);
    const deviceState = await picture.deviceState.take();
    const { pausePages } = picture;
    const unchanged = startCheck(this.#deps.checkUnchanged);
    this.#pending.add(tracker.collect());
    const taken = this.#pending.take();
    const admit = scope.kind === 'dirty';
    await pages.copyAndWrite(taken.present, admit, this.#log.counting('encode', taken.presentCount));
    markZero(this.#pending.absentPages());
    return {
      deviceState,
      disks: this.#snapshots.taken,
      frozen: undefined,
      frozenMs: 0,
      pauseMs,
      phases: phaseTimes(watch, 0),
      rounds: this.#log.round,
      dirtyPages: this.#pending.touchedCount,
      pausePages,
      warnings: this.#log.warnings,
      runState: pause.wasRunning ? 'running' : 'paused',
      unchanged,
    };
  }

  /** The live phase is the hypervisor's. @returns when the VM was stopped, if it was */
  #approach(): Promise<number | undefined> {
    const { policy, signal } = this.#deps;
    return this.#picture.approach({
      decide: (round, pagesLeft, before, bytesPerMs) =>
        this.#log.heed(policy.decide(round, pagesLeft, before, bytesPerMs), pagesLeft),
      signal,
      pauseLimitMs: this.#deps.pauseLimitMs,
      onRound: (round, pagesLeft) => {
        this.#log.round = round;
        this.#log.live(pagesLeft);
      },
    });
  }
}
