/**
 * Decides which checkpoints of a chain a policy keeps, as restic does: the newest one of each hour, day, week
 * and month, for so many of them that have any; what one rule keeps is kept. The oldest checkpoint is kept as
 * long as a rule has not kept as many as it may. Checkpoints that are dated later than now are kept, and count
 * for nothing (`misdated.ts`).
 */

import { CheckpointError } from '../../errors.js';
import { before, type Calendar, type Duration, type Period } from './calendar.js';
import type { Manifest } from '../../format/manifest.js';
import { isMisdated } from './misdated.js';

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
  /** Those of `kept` that are dated later than now. */
  readonly misdated: readonly Manifest[];
}

const PERIODS: readonly Period[] = ['hourly', 'daily', 'weekly', 'monthly'];

/** How many checkpoints a rule may still keep, and the periods in which it kept one. */
interface Rule {
  readonly reason: string;
  readonly keyOf: (timeMs: number, position: number) => string;
  left: number;
  /** All of them: a clock that goes to and fro must not make one hour count several times. */
  readonly keys: Set<string>;
}

const MISDATED = 'dated later than now';

/**
 * The newest checkpoint is always kept, and so is the newest of those that are not misdated.
 * @param manifests of one chain, oldest first
 * @param nowMs clock of this host, in ms since 1970
 * @throws USAGE for a policy without any rule, or one that would keep nothing
 */
export function select(
  manifests: readonly Manifest[],
  policy: KeepPolicy,
  calendar: Calendar,
  nowMs: number,
): Selection {
  const rules = rulesOf(policy, calendar);
  if (rules.length === 0 && policy.within === undefined) throw noPolicy();
  if (manifests.length === 0) return { kept: [], removed: [], misdated: [] };
  const misdated = manifests.filter((manifest) => isMisdated(manifest, nowMs));
  const plausible = manifests.filter((manifest) => !misdated.includes(manifest));
  const reasonsOf = new Map<Manifest, readonly string[]>(misdated.map((one) => [one, [MISDATED]]));
  const { within } = policy;
  const newest = plausible.at(-1);
  const since =
    within === undefined || newest === undefined ? Infinity : before(Date.parse(newest.time), within);
  plausible.toReversed().forEach((manifest, position) => {
    const timeMs = Date.parse(manifest.time);
    const isOldest = position === plausible.length - 1;
    const reasons = rules.flatMap((rule) => reasonToKeep(rule, timeMs, position, isOldest));
    if (within !== undefined && timeMs >= since) reasons.push(`within ${within.text}`);
    if (reasons.length > 0) reasonsOf.set(manifest, reasons);
  });
  const kept = manifests.flatMap((manifest) => {
    const reasons = reasonsOf.get(manifest);
    return reasons === undefined ? [] : [{ manifest, reasons }];
  });
  if (kept.length === 0) throw noPolicy();
  return { kept, removed: manifests.filter((manifest) => !reasonsOf.has(manifest)), misdated };
}

function rulesOf(policy: KeepPolicy, calendar: Calendar): readonly Rule[] {
  const rules: Rule[] = [];
  const add = (reason: string, count: number | undefined, keyOf: Rule['keyOf']): void => {
    if (count !== undefined && count > 0) rules.push({ reason, keyOf, left: count, keys: new Set() });
  };
  add('last', policy.last, (_, position) => `${position}`);
  for (const period of PERIODS) add(period, policy[period], (timeMs) => calendar.keyOf(period, timeMs));
  return rules;
}

function reasonToKeep(rule: Rule, timeMs: number, position: number, isOldest: boolean): string[] {
  if (rule.left === 0) return [];
  const key = rule.keyOf(timeMs, position);
  const isNew = !rule.keys.has(key);
  if (!isNew && !isOldest) return [];
  rule.left--;
  rule.keys.add(key);
  return [isNew ? rule.reason : `oldest ${rule.reason}`];
}

function noPolicy(): CheckpointError {
  return new CheckpointError('USAGE', 'nothing says which checkpoints are to be kept', {
    hint: 'name those to forget by their ids, or give a --keep-... option with at least 1',
  });
}
