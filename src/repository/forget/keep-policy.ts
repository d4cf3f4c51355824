/**
 * Decides which checkpoints of a chain a policy keeps, as restic does: the newest one of each hour, day, week
 * and month, for so many of them that have any; what one rule keeps is kept. The oldest checkpoint is kept as
 * long as a rule has not kept as many as it may.
 */

import { CheckpointError } from '../../errors.js';
import { before, type Calendar, type Duration, type Period } from './calendar.js';
import type { Manifest } from '../../format/manifest.js';

export interface KeepPolicy {
  readonly last?: number | undefined;
  readonly hourly?: number | undefined;
  readonly daily?: number | undefined;
  readonly weekly?: number | undefined;
  readonly monthly?: number | undefined;
  /** All checkpoints at most so much older than the newest one are kept. */
  readonly within?: Duration | undefined;
}

export interface KeptCheckpoint {
  readonly manifest: Manifest;
  /** The rules that keep it, such as last, daily, oldest weekly, within 7d; never empty. */
  readonly reasons: readonly string[];
}

export interface Selection {
  /** The checkpoints that stay, in the order of the chain. */
  readonly kept: readonly KeptCheckpoint[];
  readonly removed: readonly Manifest[];
}

const PERIODS: readonly Period[] = ['hourly', 'daily', 'weekly', 'monthly'];

/** How many checkpoints a rule may still keep, and the period in which it kept one last. */
interface Rule {
  readonly reason: string;
  readonly keyOf: (timeMs: number, position: number) => string;
  left: number;
  lastKey: string;
}

/**
 * The newest checkpoint is always kept.
 * @param manifests of one chain, oldest first
 * @throws USAGE for a policy without any rule, or one that would keep nothing
 */
export function select(manifests: readonly Manifest[], policy: KeepPolicy, calendar: Calendar): Selection {
  const rules = rulesOf(policy, calendar);
  if (rules.length === 0 && policy.within === undefined) throw noPolicy();
  const newest = manifests.at(-1);
  if (newest === undefined) return { kept: [], removed: [] };
  const { within } = policy;
  const since = within === undefined ? Infinity : before(Date.parse(newest.time), within);
  const kept: KeptCheckpoint[] = [];
  const removed: Manifest[] = [];
  manifests.toReversed().forEach((manifest, position) => {
    const timeMs = Date.parse(manifest.time);
    const isOldest = position === manifests.length - 1;
    const reasons = rules.flatMap((rule) => reasonToKeep(rule, timeMs, position, isOldest));
    if (within !== undefined && timeMs >= since) reasons.push(`within ${within.text}`);
    if (reasons.length > 0) kept.push({ manifest, reasons });
    else removed.push(manifest);
  });
  if (kept.length === 0) throw noPolicy();
  return { kept: kept.reverse(), removed: removed.reverse() };
}

function rulesOf(policy: KeepPolicy, calendar: Calendar): readonly Rule[] {
  const rules: Rule[] = [];
  const add = (reason: string, count: number | undefined, keyOf: Rule['keyOf']): void => {
    if (count !== undefined && count > 0) rules.push({ reason, keyOf, left: count, lastKey: '' });
  };
  add('last', policy.last, (_, position) => `${position}`);
  for (const period of PERIODS) add(period, policy[period], (timeMs) => calendar.keyOf(period, timeMs));
  return rules;
}

function reasonToKeep(rule: Rule, timeMs: number, position: number, isOldest: boolean): string[] {
  if (rule.left === 0) return [];
  const key = rule.keyOf(timeMs, position);
  const isNew = key !== rule.lastKey;
  if (!isNew && !isOldest) return [];
  rule.left--;
  rule.lastKey = key;
  return [isNew ? rule.reason : `oldest ${rule.reason}`];
}

function noPolicy(): CheckpointError {
  return new CheckpointError('USAGE', 'nothing says which checkpoints are to be kept', {
    hint: 'name those to forget by their ids, or give a --keep-... option with at least 1',
  });
}
