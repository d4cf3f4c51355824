/** Wall time of the named phases of one pause, in milliseconds. Phases may overlap: their sum can exceed the whole. */

import { performance } from 'node:perf_hooks';

export class Stopwatch {
  readonly #started: number;
  readonly #totals = new Map<string, number>();

  /** @param started on the clock of `performance.now()` */
  constructor(started = performance.now()) {
    this.#started = started;
  }

  elapsedMs(): number {
    return performance.now() - this.#started;
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
