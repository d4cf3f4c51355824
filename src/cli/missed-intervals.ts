/** Intervals of a watcher in which no checkpoint began, because the one before took too long. */

import type { CheckpointSummary } from '../checkpoint/summary.js';
import { formatMs } from '../text.js';

export class MissedIntervals {
  readonly #everyMs: number;
  #count = 0;
  #wasLate = false;

  /** @param everyMs from the start of one checkpoint to the start of the next */
  constructor(everyMs: number) {
    this.#everyMs = everyMs;
  }

  /** So far. */
  get count(): number {
    return this.#count;
  }

  /**
   * @param summary of a checkpoint that is done
   * @param tookMs it and all that was done after it
   * @returns what is to be said: of the first of several in a row that were late
   */
  after(summary: Pick<CheckpointSummary, 'totalMs' | 'regroupMs'>, tookMs: number): string | undefined {
    const missed = Math.max(0, Math.ceil(tookMs / this.#everyMs) - 1);
    const isFirst = missed > 0 && !this.#wasLate;
    this.#wasLate = missed > 0;
    this.#count += missed;
    if (!isFirst) return undefined;
    const { totalMs, regroupMs } = summary;
    const parts = [
      `checkpoint ${formatMs(totalMs - regroupMs)}`,
      ...(regroupMs > 0 ? [`regrouping ${formatMs(regroupMs)}`] : []),
      ...(tookMs - totalMs >= 1
        ? [`the rest, such as applying the policy, ${formatMs(tookMs - totalMs)}`]
        : []),
    ];
    return `the next checkpoint comes late: this one took ${formatMs(tookMs)} of the ${formatMs(this.#everyMs)} between two (${parts.join(', ')})`;
  }
}
