/**
 * What interval, budget and compression level suit this VM. Rules of thumb over the measured figures, each of
 * which says what it goes by, so that an operator can disagree.
 */

import { PAGE_SIZE_BYTES } from '../types.js';
import { formatBytes } from '../text.js';
import type { BudgetFigures } from './cache-simulation.js';
import type { CodecFigures } from './codec-comparison.js';
import type { IntervalFigures } from './windows.js';

/**
 * What a checkpoint stores besides pages: manifest, index segment, device state. Median of small checkpoints
 * in the lab.
 */
const FIXED_STORED_BYTES = 40_000;
/** Time of the first write to a page after a harvest: a fault in the host kernel. */
const FAULT_MS = 0.0015;
/** The pause that is assumed where none of this VM was measured. */
const ASSUMED_PAUSE_MS = 5;
/** Bytes copied in a millisecond of the pause; memory of a host of today does more. */
const COPY_BYTES_PER_MS = 4 << 20;
/** The default of `--max-pause`: what would take longer is copied while the VM runs. */
const MAX_PAUSE_MS = 10;

const MOST_SLOW_DOWN = 0.02;
/** A smaller budget is taken when it keeps this share of what the largest keeps. */
const ENOUGH_HITS = 0.99;
/** The next level must save this share to be worth its time. */
const WORTH_SAVING = 0.03;

const DAY_MS = 86_400_000;

export interface IntervalCost extends IntervalFigures {
  /** An estimate. */
  readonly pauseMs: number;
  /** Estimated share of time that the guest loses to pauses and faults. */
  readonly slowDown: number;
  readonly storedBytesPerDay: number;
}

export interface Advice {
  readonly intervals: readonly IntervalCost[];
  /** Undefined when no interval looked at keeps both bounds. */
  readonly interval: IntervalCost | undefined;
  readonly budgetBytes: number;
  readonly level: number;
  /** What the choices go by, a sentence each. */
  readonly reasons: readonly string[];
}

export function adviceFor(facts: {
  readonly pauseMs: number | undefined;
  /** Undefined: as much as it takes. */
  readonly mostBytesPerDay: number | undefined;
  readonly intervals: readonly IntervalFigures[];
  readonly budgets: readonly BudgetFigures[];
  readonly codecs: readonly CodecFigures[];
}): Advice {
  const fixedPauseMs = facts.pauseMs ?? ASSUMED_PAUSE_MS;
  const intervals = facts.intervals.map((interval) => costOf(interval, fixedPauseMs));
  const most = facts.mostBytesPerDay ?? Infinity;
  const interval = intervals.find(
    ({ slowDown, storedBytesPerDay }) => slowDown <= MOST_SLOW_DOWN && storedBytesPerDay <= most,
  );
  const best = Math.max(0, ...facts.budgets.map(({ hitShare }) => hitShare));
  const budget = facts.budgets.find(({ hitShare }) => hitShare >= best * ENOUGH_HITS);
  return {
    intervals,
    interval,
    budgetBytes: budget?.budgetBytes ?? 0,
    level: levelFor(facts.codecs),
    reasons: [
      `The interval is the shortest one that costs the guest at most ${MOST_SLOW_DOWN * 100} % of its time` +
        (facts.mostBytesPerDay === undefined
          ? '; --per-day bounds what a day stores as well.'
          : ` and stores at most ${formatBytes(facts.mostBytesPerDay)} a day.`),
      facts.pauseMs === undefined
        ? `No pause of this VM was measured: ${ASSUMED_PAUSE_MS} ms were assumed before pages are copied.`
        : `A pause of this VM takes ${facts.pauseMs.toFixed(1)} ms as measured, before more pages are copied.`,
      `The budget is the smallest one that keeps ${ENOUGH_HITS * 100} % of the previous versions that the largest would keep.`,
      `The level is the lowest after which the next one saves less than ${WORTH_SAVING * 100} %.`,
    ],
  };
}

function costOf(interval: IntervalFigures, fixedPauseMs: number): IntervalCost {
  const copyMs = (interval.dirtyPages * PAGE_SIZE_BYTES) / COPY_BYTES_PER_MS;
  const pauseMs = Math.max(fixedPauseMs, Math.min(fixedPauseMs + copyMs, MAX_PAUSE_MS));
  const lostMs = pauseMs + interval.dirtyPages * FAULT_MS;
  return {
    ...interval,
    pauseMs,
    slowDown: lostMs / interval.intervalMs,
    storedBytesPerDay: ((interval.storedBytes + FIXED_STORED_BYTES) * DAY_MS) / interval.intervalMs,
  };
}

function levelFor(codecs: readonly CodecFigures[]): number {
  const levels = codecs.filter((codec) => codec.level !== undefined);
  let chosen = levels[0];
  for (const next of levels.slice(1)) {
    if (chosen !== undefined && next.storedBytes > chosen.storedBytes * (1 - WORTH_SAVING)) continue;
    chosen = next;
  }
  return chosen?.level ?? 3;
}
