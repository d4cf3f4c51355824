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
import { forgetRegrouped, writeRegroupedPack, type RegroupedPack } from './regrouped-pack.js';
import type { SegmentPlan } from './segment-plan.js';
import type { WrittenMark, WrittenObjects } from './written-objects.js';

/** What regrouping did. */
export interface RegroupFigures {
  readonly pages: number;
  readonly storedBytes: number;
  readonly ms: number;
}

const NOTHING_REGROUPED: RegroupFigures = { pages: 0, storedBytes: 0, ms: 0 };

export interface RegroupStepDeps {
  readonly map: PageMap;
  /** zstd level, 0 = off. */
  readonly level: number;
  /** Reads committed records of the chain. Undefined: nothing is regrouped. */
  readonly reader: ChainReader | undefined;
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
    const { map, level, reader, written, newPack, storedLately } = this.#deps;
    if (reader === undefined) return undefined;
    const started = performance.now();
    const pages = pagesToRegroup(map, plan);
    if (pages.length === 0) return undefined;
    this.#before = written.mark();
    const pack = newPack();
    try {
      const budgetBytes = budgetOf(plan, storedLately);
      const regrouped = await writeRegroupedPack(
        { pages, map, level, reader, rise: plan.rise, budgetBytes, pack },
        this.#call,
      );
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

  /** The pages stay where they were; the pack and whatever was written after it go. */
  async takeBack(regrouped: RegroupedPack, cause: unknown): Promise<void> {
    forgetRegrouped(this.#deps.map, regrouped);
    await this.#deps.written.takeBackTo(this.#before!);
    this.#figures = NOTHING_REGROUPED;
    this.#warn(cause);
  }

  #warn(error: unknown): void {
    this.#warnings.push(
      `scattered records were left where they are, so reading gets slower as the chain grows: ${describeError(error)}`,
    );
  }
}
