/**
 * Regrouping as one step of a commit. Whatever goes wrong in it, the checkpoint is as good without: it
 * becomes a warning, and scattered records stay where they are.
 */

import { performance } from 'node:perf_hooks';

import { describeError, isCheckpointError } from '../../errors.js';
import type { CallOptions } from '../../storage/backend.js';
import type { ChainReader } from '../read/chain-reader.js';
import type { PageMap } from '../read/page-map.js';
import type { PackWriter } from './pack-writer.js';
import { budgetOf, pagesToRegroup } from './regroup-policy.js';
import type { RegroupAhead } from './regroup-ahead.js';
import { enterRegrouped, fillRegroupedPack, forgetRegrouped, type RegroupedPack } from './regrouped-pack.js';
import type { SegmentPlan } from './segment-plan.js';
import type { WrittenMark, WrittenObjects } from './written-objects.js';

/** What regrouping did. */
export interface RegroupFigures {
  readonly pages: number;
  readonly storedBytes: number;
  /** Of the checkpoint; what was done ahead of it is not in it. */
  readonly ms: number;
}

/** Nothing. */
export const NOTHING_REGROUPED: RegroupFigures = { pages: 0, storedBytes: 0, ms: 0 };

export interface RegroupStepDeps {
  readonly map: PageMap;
  /** zstd level, 0 = off. */
  readonly level: number;
  /** Reads committed records of the chain. Undefined: nothing is regrouped but what was before. */
  readonly reader: ChainReader | undefined;
  /** What was regrouped before the checkpoint began. */
  readonly ahead: RegroupAhead | undefined;
  readonly written: WrittenObjects;
  /** Begins a pack of the next number. */
  readonly newPack: () => PackWriter;
  /** Bytes that each of the newest increments added to the chain, at most so many. */
  readonly storedLately: (count: number) => readonly number[];
}

export class RegroupStep {
  readonly #deps: RegroupStepDeps;
  readonly #call: CallOptions;
  readonly #warnings: string[] = [];
  #figures = NOTHING_REGROUPED;
  #before: WrittenMark | undefined;

  constructor(deps: RegroupStepDeps, call: CallOptions) {
    this.#deps = deps;
    this.#call = call;
  }

  get figures(): RegroupFigures {
    return this.#figures;
  }

  get warnings(): readonly string[] {
    return this.#warnings;
  }

  /**
   * Brings scattered records together, in a pack of its own.
   * @returns undefined when nothing was regrouped
   * @throws what `newPack` throws, INTERRUPTED
   */
  async run(plan: SegmentPlan): Promise<RegroupedPack | undefined> {
    const { ahead, reader, written } = this.#deps;
    const started = performance.now();
    this.#before = written.mark();
    try {
      const regrouped =
        ahead === undefined ? await this.#regroupNow(plan, reader) : await this.#place(plan, ahead);
      if (regrouped === undefined) return undefined;
      const storedBytes = regrouped.entry.sizeBytes;
      written.addBytes(storedBytes);
      this.#figures = { pages: regrouped.pages.length, storedBytes, ms: performance.now() - started };
      return regrouped;
    } catch (error) {
      await written.takeBackTo(this.#before);
      if (isCheckpointError(error, 'INTERRUPTED')) throw error;
      this.#warn(error);
      return undefined;
    }
  }

  /** What was done ahead, where the pages are still as they were. */
  async #place({ pages }: SegmentPlan, ahead: RegroupAhead): Promise<RegroupedPack | undefined> {
    const { map, written } = this.#deps;
    written.follow(ahead.pack.key, ahead.pack.saved);
    return ahead.place(map, pages ?? new Uint32Array(0));
  }

  async #regroupNow(plan: SegmentPlan, reader: ChainReader | undefined): Promise<RegroupedPack | undefined> {
    const { map, level, newPack, storedLately } = this.#deps;
    if (reader === undefined) return undefined;
    const pages = pagesToRegroup(map, plan);
    if (pages.length === 0) return undefined;
    const { rise } = plan;
    const budgetBytes = budgetOf(plan, storedLately);
    const pack = newPack();
    try {
      const moved = await fillRegroupedPack(
        { pages, map, level, reader, rise, budgetBytes, pack },
        this.#call,
      );
      if (moved.pages.length > 0) return enterRegrouped(map, moved, await pack.finish());
    } catch (error) {
      await pack.abort();
      throw error;
    }
    await pack.abort();
    return undefined;
  }

  /** The pages stay where they were; the pack and whatever was written after it go. */
  async takeBack(regrouped: RegroupedPack, cause: unknown): Promise<void> {
    forgetRegrouped(this.#deps.map, regrouped);
    await this.#deps.written.takeBackTo(this.#before!);
    this.#figures = NOTHING_REGROUPED;
    this.#warn(cause);
  }

  #warn(error: unknown): void {
    this.#warnings.push(leftWhereTheyAre(error));
  }
}

/** What an operator is told when regrouping failed. */
export function leftWhereTheyAre(error: unknown): string {
  return `scattered records were left where they are, so reading gets slower as the chain grows: ${describeError(error)}`;
}
