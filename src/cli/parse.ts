/** Option values that need checking. Commander reports an InvalidArgumentError as a usage error. */

import { InvalidArgumentError } from 'commander';

/** A whole number of at least `least`, and at most `most`. */
export function wholeNumber(least: number, most = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isInteger(value) && value >= least && value <= most) return value;
    const limits = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`;
    throw new InvalidArgumentError(`a whole number ${limits} is needed`);
  };
}

/** A level of zstd; 0 switches compression off. */
export const compressionLevel = wholeNumber(0, 22);

/** More threads than this are more than any host has processors. */
export const workerCount = wholeNumber(1, 1024);

/** A number above 0. */
export function positiveNumber(text: string): number {
  const value = Number(text);
  if (Number.isFinite(value) && value > 0) return value;
  throw new InvalidArgumentError('a number above 0 is needed');
}

/** Seconds above 0 that a timer can wait for: it counts milliseconds in 31 bits. */
export function secondsForTimer(text: string): number {
  const value = positiveNumber(text);
  if (value * 1000 < 2 ** 31) return value;
  throw new InvalidArgumentError(
    `at most ${Math.floor((2 ** 31 - 1) / 1000)} seconds (24 days) are possible`,
  );
}

/** A timer counts 31 bits of milliseconds; this leaves room for what is added. */
const LONGEST_MS = 10 ** 9;
const UNITS_MS = { ms: 1, s: 1000, min: 60_000 } as const;

/** A length of time such as 5s, 1.5s, 800ms or 2min; seconds without a unit. @returns milliseconds */
export function duration(text: string): number {
  const [, value, unit = 's'] = /^(\d+(?:\.\d+)?)(ms|s|min)?$/.exec(text) ?? [];
  const ms = Number(value) * UNITS_MS[unit as keyof typeof UNITS_MS];
  if (ms >= 1 && ms <= LONGEST_MS) return ms;
  throw new InvalidArgumentError('a length of time such as 5s, 800ms or 2min is needed');
}
