/**
 * When to stop the VM: the decision between another pre-copy round and the pause.
 *
 * A round harvests the dirty pages and copies them while the VM runs, which makes the set that is left for
 * the pause smaller as long as the guest dirties pages more slowly than they are copied. The pause is
 * predicted from what this VM has shown so far: a fixed part (stop, device state, harvest, cont) and a part
 * that grows with the pages.
 */

import { PAGE_SIZE_BYTES } from '../../types.js';

export interface StopPolicyOptions {
  /** Longest pause the operator wants. Not a guarantee: see `Decision.hopeless`. */
  readonly maxPauseMs: number;
  /** Rounds after which the VM is stopped in any case. */
  readonly maxRounds: number;
}

export type Decision = 'stop' | 'another-round' | 'stop-hopeless';

/**
 * First guess before anything was measured: half of what process_vm_readv reaches with two workers into
 * touched memory.
 */
const FIRST_COPY_BYTES_PER_MS = 4.5e6;
/** First guess: stop 0.5, device state 2, scan 0.5, cont 0.5 ms, with some air. */
const FIRST_FIXED_MS = 4;
/** A round that leaves more than this part of the round before is not getting anywhere. */
const SHRINK_FACTOR = 0.75;
/** Part of the budget that the copy may use however long the fixed part takes. */
const SMALLEST_COPY_SHARE = 0.2;
/** Weight of the newest measurement. */
const SMOOTHING = 0.4;

/** Learns over the checkpoints of one session; one decision a round. */
export class StopPolicy {
  readonly #options: StopPolicyOptions;
  #copyBytesPerMs = FIRST_COPY_BYTES_PER_MS;
  #fixedMs = FIRST_FIXED_MS;

  constructor(options: StopPolicyOptions) {
    this.#options = options;
  }

  predictPauseMs(dirtyPages: number): number {
    return this.#fixedMs + this.#predictCopyMs(dirtyPages, this.#copyBytesPerMs);
  }

  #predictCopyMs(dirtyPages: number, bytesPerMs: number): number {
    return (dirtyPages * PAGE_SIZE_BYTES) / bytesPerMs;
  }

  /**
   * What the fixed part leaves of the budget. On a host so busy that the fixed part alone takes all of it,
   * rounds gain nothing beyond making the copy a small part of the pause.
   */
  #copyBudgetMs(): number {
    const { maxPauseMs } = this.#options;
    return Math.max(maxPauseMs - this.#fixedMs, maxPauseMs * SMALLEST_COPY_SHARE);
  }

  /**
   * @param round rounds done so far
   * @param dirtyPages pages that the pause would have to copy now
   * @param before the same number one round earlier, undefined in the first
   * @param bytesPerMs pace of the copy, where the caller knows it better
   */
  decide(
    round: number,
    dirtyPages: number,
    before: number | undefined,
    bytesPerMs = this.#copyBytesPerMs,
  ): Decision {
    if (this.#predictCopyMs(dirtyPages, bytesPerMs) <= this.#copyBudgetMs()) return 'stop';
    if (round >= this.#options.maxRounds) return 'stop-hopeless';
    if (before !== undefined && round >= 2 && dirtyPages > before * SHRINK_FACTOR) return 'stop-hopeless';
    return 'another-round';
  }

  /** Feeds back what a pause cost. */
  learn(pause: { readonly totalMs: number; readonly copyMs: number; readonly copiedBytes: number }): void {
    const fixedMs = Math.max(0, pause.totalMs - pause.copyMs);
    this.#fixedMs += SMOOTHING * (fixedMs - this.#fixedMs);
    // Small copies say nothing about the rate.
    if (pause.copiedBytes > 4 << 20 && pause.copyMs > 0) {
      this.#copyBytesPerMs += SMOOTHING * (pause.copiedBytes / pause.copyMs - this.#copyBytesPerMs);
    }
  }
}
