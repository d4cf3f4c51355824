/**
 * Whether the clock of this host was set while somebody watched: it should go on as the time since boot does,
 * which nobody sets, and which counts while the host sleeps.
 */

import { uptime } from 'node:os';

/** Clocks are slewed by NTP all the time; only a step is news. */
const ALLOWANCE_MS = 10 * 60_000;

export class ClockWatch {
  readonly #nowMs: () => number;
  readonly #uptimeMs: () => number;
  readonly #bootMs: number;

  constructor(nowMs = (): number => Date.now(), uptimeMs = (): number => uptime() * 1000) {
    this.#nowMs = nowMs;
    this.#uptimeMs = uptimeMs;
    this.#bootMs = nowMs() - uptimeMs();
  }

  /** By how much it was set forward since, in ms; 0 for what may be slewing, or when it was set back. */
  get setForwardMs(): number {
    const stepMs = this.#nowMs() - this.#uptimeMs() - this.#bootMs;
    return stepMs > ALLOWANCE_MS ? stepMs : 0;
  }
}
