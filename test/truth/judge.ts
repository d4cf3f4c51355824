/** What must hold for the lines of a run. */

import { SECOND_ATTACHMENT, type CheckpointLine, type TruthLine } from './truth-line.js';
import type { Scenario } from './scenarios.js';

/** Everything that is wrong, in words; empty when all holds. */
export function faultsOf(
  lines: readonly TruthLine[],
  scenario: Scenario,
  tracker: string,
): readonly string[] {
  const own = lines.filter((line) => 'scenario' in line && line.scenario === scenario.name);
  if (own.some((line) => line.event === 'skipped')) return [];
  const mine = own.filter((line) => 'tracker' in line && line.tracker === tracker);
  const checkpoints = mine.filter((line): line is CheckpointLine => line.event === 'checkpoint');
  const about = `${scenario.name} with ${tracker}`;
  const started = lines.find((line) => line.event === 'started');
  const isThere = started?.event === 'started' && started.trackers.includes(tracker);
  if (!isThere || scenario.refused?.includes(tracker) === true) {
    const isRefused = mine.some((line) => line.event === 'refused');
    return isRefused && checkpoints.length === 0 ? [] : [`${about} was not refused`];
  }
  const faults = checkpoints.flatMap(({ step, differing }) =>
    differing.length === 0 ? [] : [`${about}, ${step}: ${differing.join(', ')}`],
  );
  if (checkpoints.length !== scenario.steps.length + 2)
    faults.push(`${about}: ${checkpoints.length} checkpoints`);
  for (const { step, kind, compareReason } of checkpoints) {
    if (kind !== (step === 'base' ? 'base' : 'incremental')) faults.push(`${about}, ${step}: ${kind}`);
    const mayCompare =
      tracker === 'compare' ||
      // What a stream brought is gone with its session: another one compares with the repository.
      (tracker === 'qmp-stream' && step === SECOND_ATTACHMENT) ||
      scenario.steps.some((known) => known.name === step && known.mayCompare === true);
    if (compareReason !== '' && !mayCompare) faults.push(`${about}, ${step}: compared, ${compareReason}`);
  }
  const verified = mine.find((line) => line.event === 'verified');
  if (verified?.event !== 'verified' || verified.problems.length > 0)
    faults.push(`${about}: the repository does not verify`);
  return faults;
}
