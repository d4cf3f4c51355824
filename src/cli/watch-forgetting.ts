/**
 * How a watcher applies its policy. Checkpoints go as soon as the policy does not keep them. What they leave behind is
 * looked for less often, since that takes reading much of the chain: when some have come together, in the time until the
 * next checkpoint is due; before a checkpoint that may find no room, while there is still some to write packs anew in; and
 * when a checkpoint has found none.
 */

import type { CheckpointOptions, CheckpointSession } from '../checkpoint/session.js';
import type { CheckpointSummary } from '../checkpoint/summary.js';
import { isCheckpointError } from '../errors.js';
import type { ForgetOptions } from '../repository/forget/forget.js';
import type { KeepPolicy } from '../repository/forget/keep-policy.js';
import { misdatedText } from '../repository/forget/misdated.js';
import { formatInterval } from '../text.js';
import { ClockWatch } from './clock-watch.js';
import { forgetFields, forgetText, SHORT_OF_ROOM } from './forget-text.js';
import { asCheckpointError, type Reporter } from './reporter.js';

/** Checkpoints between two such times: at least so many, and a tenth of what was kept the last time. */
const LEAST_BETWEEN = 10;
const SHARE_BETWEEN = 0.1;
/**
 * A pack is written anew when at least this share of it is not needed: a checkpoint is waiting meanwhile.
 * `cairn prune` frees the rest. Where room is short, what `cairn prune` frees is freed at once.
 */
const THIN_ABOVE = 0.5;
/**
 * Times in a row that looking for what is not needed may be ended early by the next checkpoint. After that it goes on to its
 * end: without it the storage would fill.
 */
const MOST_CUT_SHORT = 8;
/** Applied for lack of room, the policy has to free this share of what was missing to be applied soon again. */
const WORTHWHILE = 0.25;

export interface WatchPolicy {
  /** Undefined: nothing is forgotten. */
  readonly policy: KeepPolicy | undefined;
  readonly withDisks: boolean;
  readonly keepMisdated: boolean;
}

export class WatchForgetting {
  /** Nothing failed so far. */
  isWhole = true;
  readonly #policy: KeepPolicy | undefined;
  readonly #withDisks: boolean;
  readonly #keepMisdated: boolean;
  readonly #clock: ClockWatch;
  readonly #reporter: Reporter;
  /** Checkpoints since it was looked for what is not needed. */
  #waiting = 0;
  /** Checkpoints have gone since then, or may have before this watch. */
  #hasLeftovers = true;
  /** Times in a row that the next checkpoint came before all was removed. */
  #cutShort = 0;
  /** The policy could not be applied: not to be tried, and said, after every checkpoint. */
  #isTroubled = false;
  #due = LEAST_BETWEEN;
  /** The same for when room is short. */
  #dueWhenShort = 1;

  constructor(
    { policy, withDisks, keepMisdated }: WatchPolicy,
    reporter: Reporter,
    clock = new ClockWatch(),
  ) {
    this.#policy = policy;
    this.#withDisks = withDisks;
    this.#keepMisdated = keepMisdated;
    this.#clock = clock;
    this.#reporter = reporter;
  }

  /**
   * A failure is reported and does not end the watch: the next time goes on where this one ended.
   * @param due aborted when the next checkpoint is; undefined: there is none
   */
  async afterCheckpoint(session: CheckpointSession, signal: AbortSignal, due?: AbortSignal): Promise<void> {
    if (this.#policy === undefined || signal.aborted) return;
    this.#waiting++;
    if (this.#waiting >= this.#due || due === undefined) {
      const until = this.#cutShort < MOST_CUT_SHORT ? due : undefined;
      await this.#apply(session, this.#policy, signal, { thinAbove: THIN_ABOVE, until });
    } else if (!this.#isTroubled) await this.#apply(session, this.#policy, signal, { manifestsOnly: true });
  }

  /** The same for a command that has taken one checkpoint of a chain, to which others come by other commands. */
  async afterOneShot(session: CheckpointSession, signal: AbortSignal): Promise<void> {
    if (this.#policy === undefined) return;
    const isDue = session.latestSeq % LEAST_BETWEEN === 0;
    await this.#apply(
      session,
      this.#policy,
      signal,
      isDue ? { thinAbove: THIN_ABOVE } : { manifestsOnly: true },
    );
  }

  /**
   * Takes a checkpoint, with the policy applied before it where room is short, and again where there was none.
   * @throws what the checkpoint throws: a policy that cannot be applied is reported
   */
  async checkpoint(
    session: CheckpointSession,
    signal: AbortSignal,
    options: CheckpointOptions = {},
  ): Promise<CheckpointSummary> {
    await this.#keepRoom(session, signal);
    try {
      return await session.checkpoint(options);
    } catch (error) {
      if (!(await this.#makeRoom(session, error, signal))) throw error;
      return session.checkpoint(options);
    }
  }

  async #keepRoom(session: CheckpointSession, signal: AbortSignal): Promise<void> {
    if (this.#policy === undefined || signal.aborted || this.#waiting < this.#dueWhenShort) return;
    const missing = await session.missingBytes();
    if (missing === 0) return;
    const freed = await this.#apply(session, this.#policy, signal, { onlyIfAny: !this.#hasLeftovers });
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

  /** @returns bytes that were freed; undefined when there was nothing to be forgotten or freed */
  async #apply(
    session: CheckpointSession,
    policy: KeepPolicy,
    signal: AbortSignal,
    options: Pick<ForgetOptions, 'thinAbove' | 'onlyIfAny' | 'manifestsOnly' | 'until'> = {},
  ): Promise<number | undefined> {
    if (options.manifestsOnly !== true) this.#waiting = 0;
    this.#isTroubled = true;
    if (!this.#mayTrustClock()) return 0;
    try {
      const result = await session.forget(policy, {
        withDisks: this.#withDisks,
        keepMisdated: this.#keepMisdated,
        ...options,
        signal,
      });
      this.#isTroubled = result.misdated.length > 0;
      this.#cutShort = result.isCutShort ? this.#cutShort + 1 : 0;
      if (result.isCutShort) this.#waiting = this.#due;
      if (result.isSwept) this.#due = Math.max(LEAST_BETWEEN, Math.floor(result.kept.length * SHARE_BETWEEN));
      this.#hasLeftovers = !result.isSwept && (this.#hasLeftovers || result.removed.length > 0);
      if (result.misdated.length > 0) this.#reporter.warning(misdatedText(result.misdated, Date.now()));
      for (const problem of result.problems) this.#reporter.warning(`kept because of damage: ${problem}`);
      if (result.isShortOfRoom) this.#reporter.warning(SHORT_OF_ROOM);
      if (result.problems.length > 0 || (this.#withDisks && result.disks.some(({ why }) => why !== '')))
        this.isWhole = false;
      if (result.removed.length > 0) {
        const report = { ...result, name: session.vmName, dryRun: false };
        this.#reporter.summary(forgetFields(report), forgetText(report));
      }
      const hasLooked = result.isSwept || result.isCutShort;
      return hasLooked || result.removed.length > 0 ? result.freedBytes : undefined;
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
