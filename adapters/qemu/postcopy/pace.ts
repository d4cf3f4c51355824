/** Holds what is sent beside all requests to a rate, so that guest and host keep theirs. */

import { setTimeout as delay } from 'node:timers/promises';

/** Below this a timer is of no use. */
const SHORTEST_WAIT_MS = 2;

export class Pace {
  readonly #bytesPerMs: number;
  #freeAtMs = 0;

  /** @param bytesPerSecond absent: no limit */
  constructor(bytesPerSecond: number | undefined) {
    this.#bytesPerMs = (bytesPerSecond ?? Infinity) / 1000;
  }

  /** Counts bytes that were sent. */
  took(bytes: number, nowMs = performance.now()): void {
    this.#freeAtMs = Math.max(this.#freeAtMs, nowMs) + bytes / this.#bytesPerMs;
  }

  /** @returns how long the next bytes have to wait */
  waitMs(nowMs = performance.now()): number {
    return Math.max(0, this.#freeAtMs - nowMs);
  }

  async wait(): Promise<void> {
    const ms = this.waitMs();
    if (ms >= SHORTEST_WAIT_MS) await delay(ms);
  }
}
