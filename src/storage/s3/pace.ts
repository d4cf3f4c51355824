/** Keeps a flow of bytes, from however many requests, below so many a second. */

import { setTimeout as delay } from 'node:timers/promises';
import { performance } from 'node:perf_hooks';

/** What may go at once after a time of rest. */
const BURST_MS = 100;

export class Pace {
  readonly #bytesPerMs: number | undefined;
  #freeAtMs = 0;

  /** @param bytesPerSecond undefined for no limit */
  constructor(bytesPerSecond: number | undefined) {
    this.#bytesPerMs = bytesPerSecond === undefined ? undefined : bytesPerSecond / 1000;
  }

  /** How long so many bytes take at least. */
  leastMs(byteCount: number): number {
    return this.#bytesPerMs === undefined ? 0 : byteCount / this.#bytesPerMs;
  }

  /** Waits until these bytes may go. @throws what the signal is aborted with */
  async wait(byteCount: number, signal: AbortSignal | undefined): Promise<void> {
    if (this.#bytesPerMs === undefined) return;
    const nowMs = performance.now();
    const startMs = Math.max(this.#freeAtMs, nowMs - BURST_MS);
    this.#freeAtMs = startMs + this.leastMs(byteCount);
    if (this.#freeAtMs > nowMs) await delay(this.#freeAtMs - nowMs, undefined, { signal });
  }
}
