/**
 * Suspends a Xen guest and brings it back. The guest cannot merely be paused for a checkpoint that it is to
 * come back from: event channels, timers and the mapping of shared pages are not part of the saved state, and
 * a kernel sets them up anew only on its way out of a suspend. So the guest is asked to suspend itself, as
 * `xl save` does.
 *
 * Three things stand behind the resume, as on KVM: the engine's `catch`, the guard process, and a marker file
 * for the next Cairn.
 */

import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { processStartTime } from '../../../src/host/process-identity.js';
import { CheckpointError } from '../../../src/errors.js';
import { SHORT_PAUSE_LIMIT_MS, type PauseRequest, type RunState } from '../../../src/hypervisor/run-state.js';
import { GuardKeeper } from '../../guard/guard-keeper.js';
import { GuardedPause, pauseTaken } from '../../guard/guarded-pause.js';
import type { GuardProgram } from '../../guard/pause-guard.js';
import { clearPauseMarker, isLeftPaused } from '../../guard/pause-marker.js';
import { monitorPath, type DeviceModel } from '../devices/device-model.js';
import type { XenDomain } from '../domain/domain.js';
import { wake } from './resume-domain.js';
import { lacksXenDrivers, suspendFromOutside } from './xen-drivers.js';
import { offersSuspend, requestSuspend, suspendIsPending, withdrawSuspend } from '../domain/xenstore.js';

const POLL_MS = 1;
/** A guest that works answers in milliseconds; libxl waits as long for one that swaps. */
export const ANSWER_LIMIT_MS = 60_000;

export interface RunStateOptions {
  readonly domain: XenDomain;
  readonly uuid: string;
  readonly runtimeDir: string;
  /** See VmIdentity. */
  readonly instance: string;
  readonly foreignSave: () => string;
  /** Undefined: the guard of this adapter. Tests put another one. */
  readonly guard?: GuardProgram;
  readonly answerLimitMs?: number;
  /** An HVM guest has one: it stands still and goes on together with the guest. */
  readonly deviceModel?: Pick<DeviceModel, 'hold' | 'stop' | 'resume' | 'release' | 'descriptor'> | undefined;
}

export class SuspendControl {
  readonly #options: RunStateOptions;
  readonly #markerPath: string;
  readonly #guard: GuardKeeper;
  readonly #guarded: GuardedPause;
  /** Counts the stops; 0 while the guest runs. */
  #stop = 0;
  #stops = 0;
  /** This object asked the guest to suspend, and did not wake it yet. */
  #isAsked = false;
  /** The guest took a request, and has not suspended within the limit: it may still do so at any time. */
  #isAwaited = false;

  constructor(options: RunStateOptions) {
    this.#options = options;
    this.#markerPath = join(
      options.runtimeDir,
      `xen-suspended-${options.instance.replace(/[^A-Za-z0-9.-]/g, '_')}.json`,
    );
    const { domain, uuid, deviceModel } = options;
    const attachment = randomBytes(8).toString('hex');
    this.#guard = new GuardKeeper(
      options.guard ?? suspendGuard(domain, uuid, deviceModel !== undefined),
      async () => ({
        // No process of this host is the VM. Whether the domain lives, the guard asks the hypervisor.
        process: { pid: 1, startTime: await processStartTime(1) },
        markerPath: this.#markerPath,
        attachment,
      }),
    );
    this.#guarded = new GuardedPause({ guard: this.#guard, markerPath: this.#markerPath, attachment });
  }

  /** Not 0 while this process holds the guest suspended; another number each time. */
  readonly stopNumber = (): number => this.#stop;

  /**
   * `paused` is a guest that has suspended itself; one stopped with `xl pause` cannot be checkpointed and is
   * `other`.
   */
  read(): RunState {
    const info = this.#options.domain.info();
    if (info.isDying || info.isDown) return 'other';
    if (info.isSuspended) return 'paused';
    return info.isPaused ? 'other' : 'running';
  }

  /** Resumes a guest that a Cairn suspended and did not live to resume. @returns true when it did */
  async recover(): Promise<boolean> {
    if (!(await isLeftPaused(this.#markerPath))) return false;
    const { domain, deviceModel } = this.#options;
    this.#withdraw();
    const wasSuspended = await wake(domain, deviceModel);
    clearPauseMarker(this.#markerPath);
    return wasSuspended;
  }

  async prepare(): Promise<void> {
    await this.#guard.ready();
  }

  /**
   * Asks the guest to suspend and waits until it has; see `PauseControl.pause`.
   * @throws VM_STATE, PAUSE_LIMIT, VM_GONE
   */
  async pause({ stopping, limitMs = SHORT_PAUSE_LIMIT_MS }: PauseRequest = {}): Promise<boolean> {
    const { domain, foreignSave, deviceModel } = this.#options;
    // Before there is a guard: it would stay for a domain that is gone.
    this.read();
    const guard = await this.#guard.ready();
    const found = this.read();
    if (found === 'paused') {
      if (deviceModel === undefined || this.#stop !== 0) return false;
      throw new CheckpointError('VM_STATE', `domain ${domain.domid} was suspended by somebody else`, {
        hint: 'whether its device model stands still as well cannot be told; take the checkpoint when it runs',
        retryable: true,
      });
    }
    if (found === 'other') {
      throw new CheckpointError('VM_STATE', `domain ${domain.domid} is paused, shutting down or gone`, {
        hint: 'a domain stopped with xl pause cannot suspend itself: xl unpause it first',
        retryable: true,
      });
    }
    const saver = foreignSave();
    if (saver !== '') {
      throw new CheckpointError('VM_STATE', `a save or migration is under way: ${saver}`, {
        hint: 'wait until it is over',
        retryable: true,
      });
    }
    const isUnaware = deviceModel !== undefined && lacksXenDrivers(domain);
    if (!isUnaware && !offersSuspend(domain.calls, domain.domid)) {
      throw new CheckpointError(
        'VM_STATE',
        `the kernel of domain ${domain.domid} does not offer to suspend`,
        {
          hint: 'wait until the guest has booted; it needs Xen drivers (control/feature-suspend in xenstore)',
          retryable: true,
        },
      );
    }
    await deviceModel?.hold();
    try {
      // Its monitor serves one client: it is to be the guard, when that takes the pause away.
      if (deviceModel?.descriptor !== undefined) guard.handOver(deviceModel.descriptor, 'running');
      await this.#guarded.begin(limitMs);
      stopping?.();
      if (isUnaware) suspendFromOutside(domain);
      else requestSuspend(domain.calls, domain.domid);
    } catch (error) {
      await deviceModel?.release();
      throw error;
    }
    this.#isAsked = true;
    if (!(await this.#suspended())) {
      // A guest that has seen the request will still suspend, however late: then it must be woken.
      const withdrawn = withdrawSuspend(domain.calls, domain.domid);
      this.#isAwaited = !withdrawn;
      if (withdrawn || !(await this.#suspended())) {
        throw new CheckpointError('VM_STATE', `domain ${domain.domid} did not suspend itself in time`, {
          hint: 'is its kernel alive? xl console shows',
          retryable: true,
        });
      }
    }
    this.#isAwaited = false;
    this.#stop = ++this.#stops;
    await this.#guarded.within(limitMs);
    await deviceModel?.stop();
    if (this.#guarded.isTaken()) throw pauseTaken();
    return true;
  }

  /** See `PauseControl.resume`. @throws VM_NOT_RESUMED, VM_STATE, PAUSE_LIMIT, VM_GONE */
  async resume(): Promise<void> {
    if (!this.#isAsked) return;
    const { domain, deviceModel } = this.#options;
    const isTaken = this.#guarded.isTaken();
    const isSeenTo = isTaken && (await this.#guarded.awaitGuard()) === 'resumed';
    this.#withdraw();
    const wasStopped = this.#stop !== 0;
    // Who has suspended it since the guard woke it is not this process.
    const woken = isSeenTo || (await wake(domain, deviceModel));
    this.#stop = 0;
    if (woken) this.#isAwaited = false;
    // The guard and the marker stay on watch over a guest that is about to suspend: the guard wakes it once
    // this process ends.
    if (this.#isAwaited) return;
    this.#isAsked = false;
    await deviceModel?.release();
    const info = domain.info();
    const wasTaken = isTaken || this.#guarded.isTaken();
    await this.#guarded.end();
    if (wasTaken && !info.isDown && !info.isDying) throw pauseTaken();
    if (info.isDown || info.isDying) {
      throw new CheckpointError('VM_NOT_RESUMED', `domain ${domain.domid} shut down during the checkpoint`);
    }
    if (wasStopped && !woken) {
      throw new CheckpointError(
        'VM_STATE',
        `domain ${domain.domid} was resumed by somebody else while it was suspended for a checkpoint`,
        { hint: 'the checkpoint is dropped', retryable: true },
      );
    }
  }

  async close(): Promise<void> {
    await this.#options.deviceModel?.release();
    await this.#guard.release();
  }

  /**
   * @returns false when the guest has not suspended within the limit
   * @throws VM_STATE when it shut down instead, PAUSE_LIMIT
   */
  async #suspended(): Promise<boolean> {
    const { domain, answerLimitMs = ANSWER_LIMIT_MS } = this.#options;
    const until = Date.now() + answerLimitMs;
    for (;;) {
      const info = domain.info();
      if (this.#guarded.isTaken()) throw pauseTaken();
      if (info.isSuspended) return true;
      if (info.isDown || info.isDying) {
        throw new CheckpointError('VM_STATE', `domain ${domain.domid} shut down instead of suspending`);
      }
      if (Date.now() > until) return false;
      await sleep(POLL_MS);
    }
  }

  /** A request that the guest has not taken is taken back: nobody might be there to wake it. */
  #withdraw(): void {
    const { calls, domid } = this.#options.domain;
    if (suspendIsPending(calls, domid)) withdrawSuspend(calls, domid);
  }
}

function suspendGuard({ calls, domid }: XenDomain, uuid: string, hasDeviceModel: boolean): GuardProgram {
  const { major, minor } = calls.version;
  return {
    modulePath: fileURLToPath(new URL('./suspend-guard-main.js', import.meta.url)),
    args: [
      String(major),
      String(minor),
      String(domid),
      uuid,
      ...(hasDeviceModel ? [monitorPath(domid)] : []),
    ],
  };
}
