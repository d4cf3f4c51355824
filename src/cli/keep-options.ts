/** The options that say which checkpoints are kept, of `forget`, `watch` and `checkpoint`. */

import type { Command } from 'commander';
import { InvalidArgumentError } from 'commander';

import { CheckpointError, isCheckpointError } from '../errors.js';
import { parseDuration, type Duration } from '../repository/forget/calendar.js';
import type { KeepPolicy } from '../repository/forget/keep-policy.js';
import { wholeNumber } from './parse.js';
import type { WatchPolicy } from './watch-forgetting.js';

export interface KeepCliOptions {
  readonly keepLast?: number;
  readonly keepHourly?: number;
  readonly keepDaily?: number;
  readonly keepWeekly?: number;
  readonly keepMonthly?: number;
  readonly keepWithin?: Duration;
  readonly keepMisdated?: boolean;
}

export function addKeepOptions(to: Command): Command {
  const newestOf = (period: string): string => `keep the newest checkpoint of each of the last N ${period}`;
  return to
    .option('--keep-last <n>', 'keep the last N checkpoints', wholeNumber(1))
    .option('--keep-hourly <n>', newestOf('hours that have one'), wholeNumber(1))
    .option('--keep-daily <n>', newestOf('days'), wholeNumber(1))
    .option('--keep-weekly <n>', newestOf('weeks'), wholeNumber(1))
    .option('--keep-monthly <n>', newestOf('months'), wholeNumber(1))
    .option(
      '--keep-within <duration>',
      'keep all that are at most so much older than the newest: 1y6m, 14d, 36h',
      duration,
    )
    .option(
      '--keep-misdated',
      'with a policy: go on although checkpoints are dated later than now; they are kept and count for nothing',
    );
}

/** Of a command that takes checkpoints and applies a policy beside. */
export interface PolicyCliOptions extends KeepCliOptions {
  readonly withDisks?: boolean;
}

export function addPolicyOptions(to: Command): Command {
  return addKeepOptions(to).option(
    '--with-disks',
    'with --keep-...: remove the disk snapshots of forgotten checkpoints too',
  );
}

/** @throws USAGE for --with-disks without a policy */
export function policyOf(options: PolicyCliOptions): WatchPolicy {
  const { withDisks = false, keepMisdated = false } = options;
  const policy = keepPolicyOf(options);
  if (withDisks && policy === undefined)
    throw new CheckpointError('USAGE', '--with-disks is for --keep-... alone');
  return { policy, withDisks, keepMisdated };
}

/** Undefined when no such option was given. */
export function keepPolicyOf(options: KeepCliOptions): KeepPolicy | undefined {
  const policy: KeepPolicy = {
    last: options.keepLast,
    hourly: options.keepHourly,
    daily: options.keepDaily,
    weekly: options.keepWeekly,
    monthly: options.keepMonthly,
    within: options.keepWithin,
  };
  return Object.values(policy).some((rule) => rule !== undefined) ? policy : undefined;
}

function duration(text: string): Duration {
  try {
    return parseDuration(text);
  } catch (error) {
    if (!isCheckpointError(error)) throw error;
    throw new InvalidArgumentError(error.hint ?? error.message);
  }
}
