/** Running, paused and back: what the engine does to the vCPUs, and what makes sure that they run again. */

import { processStartTime } from '../../src/checkpoint/process-identity.js';
import { CheckpointError, describeError, isCheckpointError } from '../../src/errors.js';
import type { RunState } from '../../src/hypervisor/vm.js';
import type { Json } from '../../src/types.js';
import { isMigrating } from './hazards.js';
import type { Monitor } from './monitor.js';
import { PauseGuard, type GuardProgram } from './pause-guard.js';
import {
  clearPauseMarker,
  isLeftPaused,
  pauseMarkerPath,
  setPauseMarker,
  type PauseMarker,
} from './pause-marker.js';
import type { QemuProcess } from './peer-process.js';
import { asObject, asText } from './qmp-json.js';

export interface RunStateOptions {
  readonly monitor: Monitor;
  readonly process: QemuProcess;
  /** Reaches the VM when this process is gone. */
  readonly guard: GuardProgram;
  readonly runtimeDir: string;
}

export class RunStateControl {
  readonly #options: RunStateOptions;
  readonly #markerPath: string;
  #guard: Promise<PauseGuard> | undefined;
  /** `stop` was sent and nothing since then has shown that the VM runs. */
  #stopSent = false;
  #marker: PauseMarker | undefined;

  constructor(options: RunStateOptions) {
    this.#options = options;
    this.#markerPath = pauseMarkerPath(options.runtimeDir, options.process);
  }

  async read(): Promise<RunState> {
    return runStateOf(await this.#options.monitor.execute('query-status'));
  }

  /** Resumes a VM that a Cairn paused and did not live to resume. @returns true when it did */
  async recover(): Promise<boolean> {
    if (!(await isLeftPaused(this.#markerPath))) return false;
    const wasPaused = (await this.read()) === 'paused';
    if (wasPaused) await this.#cont();
    clearPauseMarker(this.#markerPath);
    return wasPaused;
  }

  /** Starts the guard, so that the first pause does not wait for it. */
  async prepare(): Promise<void> {
    await this.#readyGuard();
  }

  /** `stop`, unless the VM is paused already; see `Vm.pause`. @throws VM_STATE, VM_GONE, QMP_TIMEOUT */
  async pause(): Promise<boolean> {
    const { monitor } = this.#options;
    const guard = await this.#readyGuard();
    const [status, migration] = await Promise.all([
      monitor.execute('query-status'),
      monitor.execute('query-migrate'),
    ]);
    const found = runStateOf(status);
    if (found === 'paused') return false;
    if (found === 'other') {
      throw new CheckpointError('VM_STATE', `the VM is neither running nor paused but ${statusOf(status)}`, {
        hint: 'wait until its migration, save or shutdown is over',
        retryable: true,
      });
    }
    const migrating = asText(asObject(migration).status);
    if (isMigrating(migrating)) {
      throw new CheckpointError('VM_STATE', `a migration of this VM is under way (${migrating})`, {
        hint: 'wait until it is over, or cancel it',
        retryable: true,
      });
    }
    this.#marker ??= { pid: process.pid, startTime: await processStartTime(process.pid) };
    await guard.pausing();
    setPauseMarker(this.#markerPath, this.#marker);
    this.#stopSent = true;
    await monitor.execute('stop');
    return true;
  }

  /** See `Vm.resume`. @throws VM_NOT_RESUMED, VM_STATE, VM_GONE */
  async resume(): Promise<void> {
    if (!this.#stopSent) return;
    const before = await this.#cont();
    this.#stopSent = false;
    (await this.#guard?.catch(() => undefined))?.running();
    clearPauseMarker(this.#markerPath);
    if (asObject(before).running === true) {
      throw new CheckpointError(
        'VM_STATE',
        'the VM was resumed by somebody else while it was paused for a checkpoint',
        {
          hint: 'the checkpoint is dropped; find out who sends `cont` or `virsh resume` to this VM',
          retryable: true,
        },
      );
    }
  }

  /** @returns the reply to query-status just before `cont` */
  async #cont(): Promise<Json> {
    const { monitor } = this.#options;
    let replies: readonly Json[];
    try {
      // All at once: QEMU answers in order, so the last tells what `cont` has done.
      replies = await Promise.all([
        monitor.execute('query-status'),
        monitor.execute('cont'),
        monitor.execute('query-status'),
      ]);
    } catch (error) {
      if (isCheckpointError(error, 'VM_GONE')) throw error;
      throw notResumed(describeError(error), error);
    }
    const [before = null, , after = null] = replies;
    if (asObject(after).running !== true) throw notResumed(`its state is ${statusOf(after)}`);
    return before;
  }

  async close(): Promise<void> {
    (await this.#guard?.catch(() => undefined))?.close();
    this.#guard = undefined;
  }

  async #readyGuard(): Promise<PauseGuard> {
    const present = await this.#guard?.catch(() => undefined);
    if (present?.isAlive === true) return present;
    this.#guard = PauseGuard.start(this.#options.guard);
    return this.#guard;
  }
}

/** Of the reply of query-status. `prelaunch` is a VM started with -S that has not run yet. */
export function runStateOf(reply: Json): RunState {
  const status = statusOf(reply);
  if (status === 'running') return 'running';
  return status === 'paused' || status === 'prelaunch' ? 'paused' : 'other';
}

function statusOf(reply: Json): string {
  return asText(asObject(reply).status);
}

function notResumed(why: string, cause?: unknown): CheckpointError {
  return new CheckpointError('VM_NOT_RESUMED', `the VM does not run after cont: ${why}`, {
    ...(cause === undefined ? {} : { cause }),
    hint: 'look at the VM in its monitor (info status)',
  });
}
