/**
 * How a watcher applies its policy: not after every checkpoint, since that takes reading much of the chain,
 * but when some have come together; before a checkpoint that may find no room, while there is still some to
 * write packs anew in; and when a checkpoint has found none.
 */

import type { CheckpointSession } from '../checkpoint/session.js';
import type { CheckpointSummary } from '../checkpoint/summary.js';
import { isCheckpointError } from '../errors.js';
import type { ForgetOptions } from '../repository/forget/forget.js';
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
 * `cairn prune` frees the rest. Where room is short, what `cairn prune` frees is freed at once.
 */
const THIN_ABOVE = 0.5;
/** Applied for lack of room, the policy has to free this share of what was missing to be applied soon again. */
const WORTHWHILE = 0.25;

export class WatchForgetting {
  /** Nothing failed so far. */
  isWhole = true;
  readonly #policy: KeepPolicy | undefined;
  readonly #withDisks: boolean;
  readonly #keepMisdated: boolean;
  readonly #clock: ClockWatch;
  readonly #reporter: Reporter;
  /** Checkpoints since the policy was applied. */
  #waiting = 0;
  #due = LEAST_BETWEEN;
  /** The same for when room is short. */
  #dueWhenShort = 1;

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
    await this.#apply(session, this.#policy, signal, { thinAbove: THIN_ABOVE });
  }

  /**
   * Takes a checkpoint, with the policy applied before it where room is short, and again where there was none.
   * @throws what the checkpoint throws: a policy that cannot be applied is reported
   */
  async checkpoint(session: CheckpointSession, signal: AbortSignal): Promise<CheckpointSummary> {
    await this.#keepRoom(session, signal);
    try {
      return await session.checkpoint();
    } catch (error) {
      if (!(await this.#makeRoom(session, error, signal))) throw error;
      return session.checkpoint();
    }
  }

  async #keepRoom(session: CheckpointSession, signal: AbortSignal): Promise<void> {
    if (this.#policy === undefined || signal.aborted || this.#waiting < this.#dueWhenShort) return;
    const missing = await session.missingBytes();
    if (missing === 0) return;
    const freed = await this.#apply(session, this.#policy, signal, { onlyIfAny: true });
    if (freed === undefined || freed >= missing * WORTHWHILE) this.#dueWhenShort = 1;
    else this.#dueWhenShort = Math.min(2 * this.#dueWhenShort, LEAST_BETWEEN);
  }

  /** @returns whether that freed something, so that the checkpoint is worth another try */
  async #makeRoom(session: CheckpointSession, cause: unknown, signal: AbortSignal): Promise<boolean> {
    if (this.#policy === undefined || !isCheckpointError(cause, 'STORAGE_FULL') || signal.aborted)
      return false;
    const what = 'there was no room for the checkpoint: it is tried again after the policy was applied';
    this.#reporter.warning(what);
    return ((await this.#apply(session, this.#policy, signal)) ?? 0) > 0;
  }

  /** @returns bytes that were freed; undefined when there was no checkpoint to be forgotten */
  async #apply(
    session: CheckpointSession,
    policy: KeepPolicy,
    signal: AbortSignal,
    options: Pick<ForgetOptions, 'thinAbove' | 'onlyIfAny'> = {},
  ): Promise<number | undefined> {
    this.#waiting = 0;
    if (!this.#mayTrustClock()) return 0;
    try {
      const result = await session.forget(policy, {
        withDisks: this.#withDisks,
        keepMisdated: this.#keepMisdated,
        ...options,
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
      return result.removed.length === 0 && result.freedBytes === 0 ? undefined : result.freedBytes;
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
