/**
 * How a watcher applies its policy: not after every checkpoint, since that takes reading much of the chain,
 * but when some have come together; and when a checkpoint finds no room.
 */

import type { CheckpointSession } from '../checkpoint/session.js';
import { isCheckpointError } from '../errors.js';
import type { KeepPolicy } from '../repository/forget/keep-policy.js';
import { misdatedText } from '../repository/forget/misdated.js';
import { formatInterval } from '../text.js';
import { ClockWatch } from './clock-watch.js';
import { forgetFields, forgetText, SHORT_OF_ROOM } from './forget-text.js';
import { asCheckpointError, type Reporter } from './reporter.js';

/** Checkpoints between two times: at least so many, and a tenth of what was kept the last time. */
const LEAST_BETWEEN = 10;
const SHARE_BETWEEN = 0.1;
/**
 * A pack is written anew when at least this share of it is not needed: a checkpoint is waiting meanwhile.
 * `cairn prune` frees the rest.
 */
const THIN_ABOVE = 0.5;

export class WatchForgetting {
  /** Nothing failed so far. */
  isWhole = true;
  readonly #policy: KeepPolicy | undefined;
  readonly #withDisks: boolean;
  readonly #keepMisdated: boolean;
  readonly #clock: ClockWatch;
  readonly #reporter: Reporter;
  #waiting = 0;
  #due = LEAST_BETWEEN;

  constructor(
    options: {
      readonly policy: KeepPolicy | undefined;
      readonly withDisks: boolean;
      readonly keepMisdated?: boolean | undefined;
      readonly clock?: ClockWatch;
    },
    reporter: Reporter,
  ) {
    this.#policy = options.policy;
    this.#withDisks = options.withDisks;
    this.#keepMisdated = options.keepMisdated ?? false;
    this.#clock = options.clock ?? new ClockWatch();
    this.#reporter = reporter;
  }

  /** A failure is reported and does not end the watch: the next time goes on where this one ended. */
  async afterCheckpoint(session: CheckpointSession, isLast: boolean, signal: AbortSignal): Promise<void> {
    if (this.#policy === undefined || signal.aborted) return;
    this.#waiting++;
    if (this.#waiting < this.#due && !isLast) return;
    await this.#apply(session, this.#policy, signal);
  }

  /**
   * Applies the policy at once when a checkpoint failed because the storage is full.
   * @returns whether that freed something, so that the checkpoint is worth another try
   */
  async makeRoom(session: CheckpointSession, cause: unknown, signal: AbortSignal): Promise<boolean> {
    if (this.#policy === undefined || !isCheckpointError(cause, 'STORAGE_FULL') || signal.aborted)
      return false;
    const what = 'there was no room for the checkpoint: it is tried again after the policy was applied';
    this.#reporter.warning(what);
    return (await this.#apply(session, this.#policy, signal)) > 0;
  }

  /** @returns bytes that were freed */
  async #apply(session: CheckpointSession, policy: KeepPolicy, signal: AbortSignal): Promise<number> {
    this.#waiting = 0;
    if (!this.#mayTrustClock()) return 0;
    try {
      const result = await session.forget(policy, {
        withDisks: this.#withDisks,
        keepMisdated: this.#keepMisdated,
        thinAbove: THIN_ABOVE,
        signal,
      });
      this.#due = Math.max(LEAST_BETWEEN, Math.floor(result.kept.length * SHARE_BETWEEN));
      if (result.misdated.length > 0) this.#reporter.warning(misdatedText(result.misdated, Date.now()));
      for (const problem of result.problems) this.#reporter.warning(`kept because of damage: ${problem}`);
      if (result.isShortOfRoom) this.#reporter.warning(SHORT_OF_ROOM);
      if (result.problems.length > 0 || (this.#withDisks && result.disks.some(({ why }) => why !== '')))
        this.isWhole = false;
      if (result.removed.length > 0) {
        const report = { ...result, name: session.vmName, dryRun: false };
        this.#reporter.summary(forgetFields(report), forgetText(report));
      }
      return result.freedBytes;
    } catch (error) {
      if (isCheckpointError(error, 'INTERRUPTED')) return 0;
      this.isWhole = false;
      if (isCheckpointError(error, 'CHECKPOINT_MISDATED')) {
        this.#reporter.warning(`nothing is forgotten: ${error.message}`);
        return 0;
      }
      this.#reporter.error(asCheckpointError(error));
      return 0;
    }
  }

  /**
   * A clock that was set forward makes the newest checkpoints look far younger than the others: by age, all of
   * those would go. Rules that count periods are not misled.
   */
  #mayTrustClock(): boolean {
    const { setForwardMs } = this.#clock;
    if (this.#policy?.within === undefined || setForwardMs === 0) return true;
    this.isWhole = false;
    this.#reporter.warning(
      `nothing is forgotten: the clock was set forward by ${formatInterval(setForwardMs)} since this watch began, and ` +
        '--keep-within goes by it; when the clock is right, start the watch again',
    );
    return false;
  }
}
