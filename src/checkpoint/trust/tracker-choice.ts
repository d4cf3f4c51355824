/**
 * Chooses the dirty tracker of a session: the best that is proven on this host and this VM, or the one
 * insisted on.
 */

import { CheckpointError } from '../../errors.js';
import type { DirtyTracker, TrackerReport } from '../../hypervisor/dirty-tracker.js';
import type { Vm, VmHazard, VmReport } from '../../hypervisor/vm.js';

export interface TrackerChoice {
  /** Started. */
  readonly tracker: DirtyTracker;
  /** Why it is not a better one; empty when it is the best or was asked for. */
  readonly reason: string;
}

/**
 * `auto` takes the first usable one in the order of the adapter's report. A hazard through which writes
 * escape a tracker leaves `compare` and those that are immune to it, also when another was asked for.
 * @throws VM_UNSUPPORTED for a hazard that allows no checkpoint at all, TRACKER_UNAVAILABLE
 */
export async function chooseTracker(vm: Vm, wanted: string): Promise<TrackerChoice> {
  const report = await vm.inspect();
  const { kind, reason } = decideTracker(vm.address, report, wanted);
  for (const { warns, text } of report.hazards) if (warns === true) process.emitWarning(text);
  const tracker = vm.memory.tracker(kind);
  await tracker.start();
  return { tracker, reason };
}

/** Decides as `chooseTracker` does, without touching the VM. */
export function decideTracker(
  address: string,
  report: VmReport,
  wanted: string,
): { readonly kind: string; readonly reason: string } {
  const refusal = report.hazards.find((hazard) => hazard.effect === 'refuse');
  if (refusal !== undefined) {
    throw new CheckpointError('VM_UNSUPPORTED', `no checkpoint of ${address}: ${refusal.text}`, {
      detail: { hazard: refusal.code },
      hint: refusal.remedy ?? 'cairn doctor lists what stands in the way',
    });
  }
  const escapeOf = ({ kind }: TrackerReport): VmHazard | undefined => escapeFrom(report, kind);
  if (wanted !== 'auto') {
    const known = report.trackers.find((tracker) => tracker.kind === wanted);
    const escape = known === undefined ? undefined : escapeOf(known);
    if (escape !== undefined) {
      throw new CheckpointError(
        'TRACKER_UNAVAILABLE',
        `tracker ${wanted} would miss writes: ${escape.text}`,
        {
          detail: { hazard: escape.code },
          hint: 'use --tracker compare, which reads and compares all pages in the pause',
        },
      );
    }
    if (known?.usable === true) return { kind: wanted, reason: '' };
    throw new CheckpointError(
      'TRACKER_UNAVAILABLE',
      known === undefined
        ? `there is no tracker called "${wanted}"`
        : `tracker ${wanted} cannot be used: ${known.reason}`,
      { hint: known?.remedy ?? `known here: ${report.trackers.map((tracker) => tracker.kind).join(', ')}` },
    );
  }
  const reasons: string[] = [];
  for (const candidate of report.trackers) {
    const escape = escapeOf(candidate);
    if (candidate.usable && escape === undefined) return { kind: candidate.kind, reason: reasons.join('; ') };
    reasons.push(`${candidate.kind}: ${candidate.usable ? (escape?.text ?? '') : candidate.reason}`);
  }
  throw new CheckpointError(
    'TRACKER_UNAVAILABLE',
    `no dirty tracker can be used on ${address}: ${reasons.join('; ')}`,
  );
}

/** A hazard through which writes escape that tracker. */
export function escapeFrom(report: VmReport, kind: string): VmHazard | undefined {
  const immuneTo = report.trackers.find((tracker) => tracker.kind === kind)?.immuneTo ?? [];
  if (immuneTo === 'all') return undefined;
  return report.hazards.find(({ code, effect }) => effect === 'compare' && !immuneTo.includes(code));
}
