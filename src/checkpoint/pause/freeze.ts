/** The freeze of the guest's file systems around one pause, and its end on every path. */

import { performance } from 'node:perf_hooks';

import type { FrozenGuest, VmFreezer } from '../../hypervisor/freezer.js';
import { faultPoint } from '../fault-points.js';

/** What is done with the guest frozen and running, before the pause and after it, takes less. */
const AROUND_PAUSE_MS = 5000;

export class Freeze {
  readonly #freezer: VmFreezer | undefined;
  readonly #limitMs: number | undefined;
  readonly #pauseLimitMs: number;
  #frozen: FrozenGuest | undefined;
  /** When the guest's file systems were frozen; undefined while they are not. */
  #since: number | undefined;
  #frozenMs = 0;

  /**
   * @param limitMs for the agent's answer; undefined: nothing is frozen
   * @param pauseLimitMs of the pause around which it is frozen
   */
  constructor(freezer: VmFreezer | undefined, limitMs: number | undefined, pauseLimitMs = 0) {
    this.#freezer = freezer;
    this.#limitMs = limitMs;
    this.#pauseLimitMs = pauseLimitMs;
  }

  get isWanted(): boolean {
    return this.#limitMs !== undefined;
  }

  /** Undefined when nothing was frozen. */
  get frozen(): FrozenGuest | undefined {
    return this.#frozen;
  }

  /** Time for which file systems were frozen, as seen from here; 0 when nothing was. */
  get frozenMs(): number {
    return this.#frozenMs;
  }

  /** @throws see `VmFreezer.freeze` */
  async freeze(): Promise<void> {
    if (this.#limitMs === undefined) return;
    const frozenLimitMs = this.#limitMs + this.#pauseLimitMs + AROUND_PAUSE_MS;
    const fileSystemCount = (await this.#freezer?.freeze(this.#limitMs, frozenLimitMs)) ?? 0;
    this.#since = performance.now();
    this.#frozen = { fileSystemCount };
    faultPoint('afterFreeze');
  }

  /**
   * Does nothing when nothing is frozen. A guest that stays frozen is worse than a checkpoint that fails, so
   * this failure counts before all others.
   * @throws GUEST_FROZEN, PAUSE_LIMIT
   */
  async thaw(): Promise<void> {
    if (this.#since === undefined) return;
    const since = this.#since;
    this.#since = undefined;
    await this.#freezer?.thaw();
    this.#frozenMs = performance.now() - since;
  }

  /** Thaws when `work` fails, and leaves the guest frozen otherwise. */
  async orThaw(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      await this.thaw();
      throw error;
    }
  }
}
