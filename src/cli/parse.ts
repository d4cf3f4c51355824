/** Option values that need checking. Commander reports an InvalidArgumentError as a usage error. */

import { InvalidArgumentError } from 'commander';

/** A whole number of at least `least`. */
export function wholeNumber(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isInteger(value) && value >= least) return value;
    throw new InvalidArgumentError(`a whole number of at least ${least} is needed`);
  };
}

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
