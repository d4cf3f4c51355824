/**
 * Wall time of one pause and its named phases, in milliseconds. Phases may overlap: their sum can exceed the
 * whole.
 */

import { performance } from 'node:perf_hooks';

export class Stopwatch {
  #started: number;
  #stopped: number | undefined;
  readonly #totals = new Map<string, number>();

  /** @param started on the clock of `performance.now()` */
  constructor(started = performance.now()) {
    this.#started = started;
  }

  /** Up to `stop`, or up to now. */
  elapsedMs(): number {
    return (this.#stopped ?? performance.now()) - this.#started;
  }

  /** The whole begins here, not when this object was made. @param at on the clock of `performance.now()` */
  start(at = performance.now()): void {
    this.#started = at;
  }

  /** The whole ends here. Later calls change nothing. */
  stop(): void {
    this.#stopped ??= performance.now();
  }

  /** All that has passed of the whole since it stood at `fromMs` was one phase. */
  since(phase: string, fromMs: number): void {
    this.#add(phase, this.elapsedMs() - fromMs);
  }

  async time<T>(phase: string, work: () => Promise<T>): Promise<T> {
    const from = performance.now();
    try {
      return await work();
    } finally {
      this.#add(phase, performance.now() - from);
    }
  }

  timeSync<T>(phase: string, work: () => T): T {
    const from = performance.now();
    try {
      return work();
    } finally {
      this.#add(phase, performance.now() - from);
    }
  }

  total(phase: string): number {
    return this.#totals.get(phase) ?? 0;
  }

  #add(phase: string, ms: number): void {
    this.#totals.set(phase, this.total(phase) + ms);
  }
}
