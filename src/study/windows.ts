/**
 * What checkpoints at longer intervals would find: epochs are joined to windows of 2, 4, 8, ..., a page of a
 * window counts once, and its delta spans the whole window. Intervals beyond the longest window are
 * extrapolated and say so.
 */

import type { PageCodec } from '../kernels/page-codec.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import { deltaBytes } from './encoded-size.js';
import type { ObservedEpoch } from './subject.js';

export interface IntervalFigures {
  readonly intervalMs: number;
  /** Means over the windows of that length. */
  readonly dirtyPages: number;
  readonly storedBytes: number;
  /** True when no window of that length was observed. */
  readonly extrapolated: boolean;
}

/** Asked for beyond what was observed, where that is shorter. */
const LONGER_MS = [1000, 10_000, 60_000, 600_000, 3_600_000];

/** @param epochs all of them, with contents of a sample of their pages */
export function intervalFigures(
  epochs: readonly ObservedEpoch[],
  level: number,
  codec: PageCodec,
  memoryPages: number,
): readonly IntervalFigures[] {
  const observed: IntervalFigures[] = [];
  for (let length = 1; length <= epochs.length; length *= 2) {
    const windows: Omit<IntervalFigures, 'extrapolated'>[] = [];
    for (let from = 0; from + length <= epochs.length; from += length)
      windows.push(windowFigures(epochs.slice(from, from + length), level, codec));
    observed.push({
      intervalMs: mean(windows.map(({ intervalMs }) => intervalMs)),
      dirtyPages: mean(windows.map(({ dirtyPages }) => dirtyPages)),
      storedBytes: mean(windows.map(({ storedBytes }) => storedBytes)),
      extrapolated: false,
    });
  }
  return [...observed, ...extrapolate(observed, memoryPages)];
}

function windowFigures(
  epochs: readonly ObservedEpoch[],
  level: number,
  codec: PageCodec,
): Omit<IntervalFigures, 'extrapolated'> {
  const pages = new Set<number>();
  const first = new Map<number, Uint8Array>();
  const last = new Map<number, Uint8Array>();
  for (const epoch of epochs) {
    for (const page of epoch.pages) pages.add(page);
    epoch.contentPages.forEach((page, i) => {
      const at = i * PAGE_SIZE_BYTES;
      if (!first.has(page)) first.set(page, epoch.before.subarray(at, at + PAGE_SIZE_BYTES));
      last.set(page, epoch.after.subarray(at, at + PAGE_SIZE_BYTES));
    });
  }
  const sampled = [...first.keys()].sort((a, b) => a - b);
  const stored = deltaBytes(
    {
      before: Buffer.concat(sampled.map((page) => first.get(page)!)),
      after: Buffer.concat(sampled.map((page) => last.get(page)!)),
    },
    level,
    codec,
  );
  return {
    intervalMs: epochs.reduce((sum, { runMs }) => sum + runMs, 0),
    dirtyPages: pages.size,
    storedBytes: sampled.length === 0 ? 0 : (stored * pages.size) / sampled.length,
  };
}

/**
 * Power laws through the last two lengths: a working set grows ever more slowly, never faster than time,
 * never beyond memory.
 */
function extrapolate(observed: readonly IntervalFigures[], memoryPages: number): readonly IntervalFigures[] {
  const [before, last] = observed.slice(-2);
  if (before === undefined || last === undefined) return [];
  const exponent = (from: number, to: number): number =>
    from <= 0 || to <= 0
      ? 0
      : Math.min(1, Math.max(0, Math.log(to / from) / Math.log(last.intervalMs / before.intervalMs)));
  const pagesExponent = exponent(before.dirtyPages, last.dirtyPages);
  const storedExponent = exponent(before.storedBytes, last.storedBytes);
  return LONGER_MS.filter((intervalMs) => intervalMs > last.intervalMs * 1.5).map((intervalMs) => {
    const factor = intervalMs / last.intervalMs;
    return {
      intervalMs,
      dirtyPages: Math.min(memoryPages, last.dirtyPages * factor ** pagesExponent),
      storedBytes: Math.min(memoryPages * PAGE_SIZE_BYTES, last.storedBytes * factor ** storedExponent),
      extrapolated: true,
    };
  });
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}
