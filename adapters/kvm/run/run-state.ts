/** Running, paused and back: what the engine does to the vCPUs, and what makes sure that they run again. */

import { randomBytes } from 'node:crypto';

import { CheckpointError, describeError, isCheckpointError } from '../../../src/errors.js';
import { SHORT_PAUSE_LIMIT_MS, type PauseRequest, type RunState } from '../../../src/hypervisor/run-state.js';
import type { Json, JsonObject } from '../../../src/types.js';
import { isMigrating } from '../inspect/hazards.js';
import { blockersOf, refuseBlocked } from '../../qemu/migration-blockers.js';
import { eventsOf, type Monitor } from '../../qemu/monitor.js';
import { GuardKeeper } from '../../guard/guard-keeper.js';
import { GuardedPause, pauseTaken } from '../../guard/guarded-pause.js';
import type { GuardProgram, PauseGuard } from '../../guard/pause-guard.js';
import {
  clearPauseMarker,
  frozenMarkerPath,
  isLeftPaused,
  isRewinding,
  pauseMarkerPath,
  readPauseMarker,
  type PauseMarker,
} from '../../guard/pause-marker.js';
import type { QemuProcess } from '../../qemu/peer-process.js';
import { asObject, asText } from '../../qemu/qmp-json.js';
import { notResumed, resumedByOthers, unanswered } from './run-errors.js';
import { runStateOf, stateRefused, statusOf } from './run-states.js';

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
  readonly #guard: GuardKeeper;
  readonly #guarded: GuardedPause;
  readonly #stopListening: () => void;
  /** `stop` was sent and nothing since then has shown that the VM runs. */
  #stopSent = false;
  /** `stop` was answered and `cont` not sent: who resumes the VM now is somebody else. */
  #isStopped = false;
  /** Since the last pause. It may stand still again, for reasons of that somebody. */
  #resumedByOthers = false;

  constructor(options: RunStateOptions) {
    this.#options = options;
    const { process, runtimeDir, monitor } = options;
    const markerPath = pauseMarkerPath(runtimeDir, process);
    const attachment = randomBytes(8).toString('hex');
    this.#markerPath = markerPath;
    this.#guard = new GuardKeeper(options.guard, () =>
      Promise.resolve({
        ...{ process, markerPath, attachment, connection: monitor.descriptor },
        frozenMarkerPath: frozenMarkerPath(runtimeDir, process),
      }),
    );
    this.#guarded = new GuardedPause({ guard: this.#guard, markerPath, attachment });
    this.#stopListening = onResume(options.monitor, () => {
      if (!this.#isStopped) return;
      this.#resumedByOthers = true;
      this.#pauseIsOver().catch(() => undefined);
    });
  }

  async read(): Promise<RunState> {
    return runStateOf(await this.#options.monitor.execute('query-status'));
  }

  /** Stopped, or about to be, by a migration that sends its last pages (RunState of qapi/run-state.json). */
  async isFinishingMigration(): Promise<boolean> {
    return statusOf(await this.#options.monitor.execute('query-status')) === 'finish-migrate';
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
    await this.guard();
  }

  /** The guard of this attachment, ready. @throws VM_STATE */
  async guard(): Promise<PauseGuard> {
    return this.#guard.ready();
  }

  /** Leaves the guard to itself: it sees to what it was told of. The next pause gets another. */
  async releaseGuard(): Promise<void> {
    await this.#guard.release();
  }

  /** What markers of this attachment say. */
  owner(): PauseMarker {
    return this.#guarded.owner();
  }

  /**
   * `stop`, unless the VM is paused already; see `PauseControl.pause`.
   * @throws VM_STATE, also when a migration is under way that is not Cairn's own; VM_GONE, QMP_TIMEOUT,
   *   PAUSE_LIMIT; with `savesDevices` VM_UNSUPPORTED, also once the VM is stopped
   */
  async pause({
    duringOwnMigration = false,
    savesDevices = false,
    stopping,
    limitMs = SHORT_PAUSE_LIMIT_MS,
  }: PauseRequest & {
    readonly duringOwnMigration?: boolean;
    /** QEMU is asked for its device state next: only where it would migrate the VM. */
    readonly savesDevices?: boolean;
  } = {}): Promise<boolean> {
    const { monitor } = this.#options;
    await this.guard();
    const [status, migration] = await Promise.all([
      monitor.execute('query-status'),
      monitor.execute('query-migrate'),
    ]);
    const found = runStateOf(status);
    if (savesDevices) refuseBlocked(blockersOf(migration));
    if (found === 'paused') return false;
    if (found === 'other') throw stateRefused(statusOf(status));
    const migrating = asText(asObject(migration).status);
    if (isMigrating(migrating) && !duringOwnMigration) {
      throw new CheckpointError('VM_STATE', `a migration of this VM is under way (${migrating})`, {
        hint: 'wait until it is over, or cancel it',
        retryable: true,
      });
    }
    this.#resumedByOthers = false;
    await this.#guarded.begin(limitMs);
    this.#stopSent = true;
    stopping?.();
    try {
      await monitor.execute('stop');
    } finally {
      // Without an answer it may still take effect.
      this.#isStopped = true;
    }
    // This process stood still in between, and the VM runs or soon will.
    if (this.#guarded.isTaken()) throw pauseTaken();
    // Until the stop a device could be plugged in, and the guest could mount a share.
    if (savesDevices) refuseBlocked(blockersOf(await monitor.execute('query-migrate')));
    return true;
  }

  /** In the pause. @throws PAUSE_LIMIT when the guard has taken it away */
  mustHold(): void {
    if (this.#guarded.isTaken()) throw pauseTaken();
  }

  /** What the rewind that was cut off has left; undefined when there is none. */
  unfinishedRewind(): JsonObject | undefined {
    const marker = readPauseMarker(this.#markerPath);
    return isRewinding(marker) ? marker?.rewind : undefined;
  }

  /** In the pause: nobody resumes the VM before `endRewind`. @throws as `GuardedPause.beginRewind` */
  async beginRewind(note: JsonObject): Promise<void> {
    await this.#guarded.beginRewind(note);
    this.#stopSent = false;
    this.#isStopped = false;
  }

  /**
   * Guest memory is of one moment again.
   * @param runs the VM is to be resumed next; otherwise it stays paused, and is nobody's any more
   */
  async endRewind(runs: boolean): Promise<void> {
    if (!runs) return this.#pauseIsOver();
    await this.#guarded.endRewind(SHORT_PAUSE_LIMIT_MS);
    this.#stopSent = true;
    this.#isStopped = true;
  }

  /** See `PauseControl.resume`. @throws VM_NOT_RESUMED, VM_STATE, PAUSE_LIMIT, VM_GONE */
  async resume(running?: () => void): Promise<void> {
    if (this.#resumedByOthers || this.#stopSent) await this.resumeFromMigration(running);
  }

  /**
   * Makes a VM run again after a migration to Cairn was cancelled: QEMU may have done so itself.
   * @throws VM_NOT_RESUMED, PAUSE_LIMIT, VM_GONE
   */
  async resumeFromCancelled(): Promise<void> {
    if (this.#guarded.isTaken()) throw await this.#lost();
    this.#isStopped = false;
    const status = statusOf(await this.#options.monitor.execute('query-status'));
    // A VM in plain `paused` was stopped by `pause`, or by somebody whose business it is.
    if (status !== 'running' && (this.#stopSent || status !== 'paused')) await this.#cont();
    await this.#pauseIsOver();
  }

  /** A migration to Cairn was cancelled, and the VM is stopped by somebody whose business it is. */
  async leaveStopped(): Promise<void> {
    await this.#pauseIsOver();
  }

  /**
   * Resumes as `resume` does, also a VM that was stopped by a migration to Cairn instead of `pause`.
   * @throws VM_NOT_RESUMED, VM_STATE, PAUSE_LIMIT, VM_GONE
   */
  async resumeFromMigration(running?: () => void): Promise<void> {
    if (this.#resumedByOthers) {
      this.#resumedByOthers = false;
      throw resumedByOthers();
    }
    if (this.#guarded.isTaken()) throw await this.#lost();
    this.#isStopped = false;
    let before: Json;
    try {
      before = await this.#cont(running);
    } catch (error) {
      this.#isStopped = true;
      if (this.#guarded.isTaken() || isCheckpointError(error, 'VM_GONE')) throw await this.#lost(error);
      throw error;
    }
    const isTaken = this.#guarded.isTaken();
    await this.#pauseIsOver();
    if (isTaken) throw pauseTaken();
    if (asObject(before).running === true) throw resumedByOthers();
  }

  /**
   * The guard has taken the pause away, or is to end it because the connection is lost.
   * @returns what the checkpoint fails with, once the VM runs or it is known that it does not
   */
  async #lost(cause?: unknown): Promise<CheckpointError> {
    const wasTaken = this.#guarded.isTaken();
    const seen = await this.#guarded.awaitGuard();
    if (seen === 'late' && !(await this.#isRunning())) return unanswered(cause ?? pauseTaken());
    // Nobody else sees to it.
    if (seen === 'unknown') {
      try {
        await this.#cont();
      } catch (error) {
        return isCheckpointError(error) ? error : notResumed(describeError(error), error);
      }
    }
    await this.#pauseIsOver();
    return !wasTaken && isCheckpointError(cause) ? cause : pauseTaken(cause);
  }

  /** False when that cannot be found out. */
  #isRunning(): Promise<boolean> {
    return this.read().then(
      (state) => state === 'running',
      () => false,
    );
  }

  /** @returns the reply to query-status just before `cont` */
  async #cont(running?: () => void): Promise<Json> {
    const { monitor } = this.#options;
    let replies: readonly Json[];
    try {
      // All at once: QEMU answers in order, so the last tells what `cont` has done.
      replies = await Promise.all([
        monitor.execute('query-status'),
        monitor.execute('cont').then((reply) => {
          running?.();
          return reply;
        }),
        monitor.execute('query-status'),
      ]);
    } catch (error) {
      if (isCheckpointError(error, 'VM_GONE')) throw error;
      throw isCheckpointError(error, 'QMP_TIMEOUT')
        ? unanswered(error)
        : notResumed(describeError(error), error);
    }
    const [before = null, , after = null] = replies;
    if (asObject(after).running !== true) throw notResumed(`its state is ${statusOf(after)}`);
    return before;
  }

  async close(): Promise<void> {
    this.#stopListening();
    await this.releaseGuard();
  }

  /** From here on nobody may resume the VM: if it stands still later, its operator has paused it. */
  async #pauseIsOver(): Promise<void> {
    this.#stopSent = false;
    this.#isStopped = false;
    await this.#guarded.end();
  }
}

/** libvirt hands no events on: there only the run state itself shows what others do. */
function onResume(monitor: Monitor, listener: () => void): () => void {
  const stop = eventsOf(monitor, ({ event }) => {
    if (event === 'RESUME') listener();
  });
  return stop ?? (() => undefined);
}
