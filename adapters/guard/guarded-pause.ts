/**
 * One attachment's pauses as its guard sees them: marked before the VM is stopped, limited in time, and maybe
 * taken away.
 *
 *     begin -> stop the VM -> work -> isTaken? -> resume the VM -> isTaken? -> end
 *                              `-> beginRewind ... endRewind -'       nobody resumes the VM in between
 *
 * The guard marks that it takes a pause away before it resumes the VM. So when `isTaken` says no, whatever
 * was done up to then was done in a pause that the guard had not touched.
 */

import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import { CheckpointError } from '../../src/errors.js';
import type { JsonObject } from '../../src/types.js';
import type { GuardKeeper } from './guard-keeper.js';
import {
  clearPauseMarker,
  isRewinding,
  markerOf,
  readPauseMarker,
  replacePauseMarker,
  setPauseMarker,
  type PauseMarker,
} from './pause-marker.js';

/** A guard that is at work needs some retries; then whoever asks must say that the VM does not run. */
const RESUME_LIMIT_MS = 10_000;
const POLL_MS = 10;

export interface GuardedPauseOptions {
  readonly guard: GuardKeeper;
  readonly markerPath: string;
  readonly attachment: string;
}

export class GuardedPause {
  readonly #options: GuardedPauseOptions;
  #owner: PauseMarker | undefined;
  #isMarked = false;
  /** Up to then the guard has not taken the pause away, on the clock of `performance.now()`. */
  #untilMs = 0;

  constructor(options: GuardedPauseOptions) {
    this.#options = options;
  }

  /** What markers of this attachment say. */
  owner(): PauseMarker {
    this.#owner ??= markerOf(this.#options.attachment);
    return this.#owner;
  }

  /**
   * Right before the VM is stopped.
   * @param mark writes the marker; default: the plain one
   * @throws VM_STATE without a guard; PAUSE_LIMIT when this took longer than the pause may, with nothing
   *   stopped
   */
  async begin(limitMs: number, mark = () => this.#mark()): Promise<void> {
    const guard = await this.#options.guard.ready();
    mark();
    this.#isMarked = true;
    this.#untilMs = performance.now() + limitMs;
    try {
      await guard.pausing(limitMs);
    } catch (error) {
      await this.end();
      throw error;
    }
    if (!this.isTaken()) return;
    await this.end();
    throw pauseTaken();
  }

  /**
   * In the pause, or of a VM that somebody else has paused: from here on nobody resumes the VM, also when this
   * process dies. The guard is not waited for: it looks at the marker before it takes a pause away, so one that has
   * not done so before the limit finds the rewind.
   * @throws PAUSE_LIMIT when the guard may have taken the pause away, STORAGE_FULL and the like
   */
  async beginRewind(rewind: JsonObject): Promise<void> {
    const { guard, markerPath } = this.#options;
    if (this.isTaken()) throw pauseTaken();
    replacePauseMarker(markerPath, { ...this.owner(), rewind });
    if (this.#isMarked && performance.now() >= this.#untilMs) {
      replacePauseMarker(markerPath, this.owner());
      throw pauseTaken();
    }
    this.#isMarked = true;
    (await guard.present())?.rewinding();
  }

  /** The rewind is over, and the VM stands still: a pause like any other from here on. */
  async endRewind(limitMs: number): Promise<void> {
    const { guard, markerPath } = this.#options;
    replacePauseMarker(markerPath, this.owner());
    (await guard.present())?.rewound(limitMs);
  }

  /** The limit counts from now. */
  async within(limitMs: number): Promise<void> {
    (await this.#options.guard.present())?.within(limitMs);
  }

  /** The guard has taken the pause away, or is about to, or the marker was removed. */
  isTaken(): boolean {
    if (!this.#isMarked) return false;
    const { markerPath, attachment } = this.#options;
    const marker = readPauseMarker(markerPath);
    return marker?.attachment !== attachment || marker.takenAway !== undefined;
  }

  /**
   * Waits for the guard, which has the VM run. One that has not begun is made to, by letting it go.
   * @returns `late` when the guard is still at it; `unknown` when it has died, or the marker was removed
   */
  async awaitGuard(): Promise<'resumed' | 'late' | 'unknown'> {
    const { guard: keeper, markerPath, attachment } = this.#options;
    const guard = await keeper.present();
    const isLetGo = !this.isTaken();
    if (isLetGo) await keeper.release();
    const until = Date.now() + RESUME_LIMIT_MS;
    while (Date.now() < until) {
      const marker = readPauseMarker(markerPath);
      const isThere = marker?.attachment === attachment;
      if (marker?.takenAway === 'resumed' || (isLetGo && !isThere)) return 'resumed';
      if (!isThere || guard?.isAlive !== true) return 'unknown';
      await sleep(POLL_MS);
    }
    return 'late';
  }

  /** From here on nobody may resume the VM: if it stands still later, its operator has paused it. */
  async end(): Promise<void> {
    this.#isMarked = false;
    clearPauseMarker(this.#options.markerPath);
    (await this.#options.guard.present())?.running();
  }

  #mark(): void {
    const { markerPath } = this.#options;
    const before = readPauseMarker(markerPath);
    // A rewind that was cut off, of a VM that somebody has resumed since: it stays one.
    if (isRewinding(before)) replacePauseMarker(markerPath, { ...before, ...this.owner() });
    else setPauseMarker(markerPath, this.owner());
  }
}

/** The checkpoint lost its pause. The VM runs. */
export function pauseTaken(cause?: unknown): CheckpointError {
  return new CheckpointError(
    'PAUSE_LIMIT',
    'the pause went on beyond its limit, so the guard process of Cairn has ended it; the VM runs',
    {
      hint: 'the checkpoint is dropped; find out what Cairn was held up by, or allow more with --pause-limit',
      retryable: true,
      detail: { endedBy: 'guard' },
      ...(cause === undefined ? {} : { cause }),
    },
  );
}
