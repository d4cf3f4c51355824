/** Which dirty tracker a session uses: the best that is proven on this host and this VM, or the one insisted on. */

import { CheckpointError } from '../errors.js';
import type { DirtyTracker } from '../hypervisor/dirty-tracker.js';
import type { Vm } from '../hypervisor/vm.js';

export interface TrackerChoice {
  /** Started. */
  readonly tracker: DirtyTracker;
  /** Why it is not a better one; empty when it is the best or was asked for. */
  readonly reason: string;
}

/**
 * `auto` takes the first usable one in the order of the adapter's report, which ends with `compare`. A hazard through
 * which writes escape every tracker leaves only `compare`, also when another was asked for.
 * @throws VM_UNSUPPORTED for a hazard that allows no checkpoint at all, TRACKER_UNAVAILABLE
 */
export async function chooseTracker(vm: Vm, wanted: string): Promise<TrackerChoice> {
  const report = await vm.inspect();
  const refusal = report.hazards.find((hazard) => hazard.effect === 'refuse');
  if (refusal !== undefined) {
    throw new CheckpointError('VM_UNSUPPORTED', `no checkpoint of ${vm.address}: ${refusal.text}`, {
      detail: { hazard: refusal.code },
      hint: 'cairn doctor lists what stands in the way',
    });
  }
  const escape = report.hazards.find((hazard) => hazard.effect === 'compare');
  if (escape !== undefined) {
    if (wanted !== 'auto' && wanted !== 'compare') {
      throw new CheckpointError(
        'TRACKER_UNAVAILABLE',
        `tracker ${wanted} would miss writes: ${escape.text}`,
        {
          detail: { hazard: escape.code },
          hint: 'use --tracker compare, which reads and compares all pages in the pause',
        },
      );
    }
    return { tracker: await started(vm, 'compare'), reason: escape.text };
  }
  if (wanted !== 'auto') {
    const known = report.trackers.find((tracker) => tracker.kind === wanted);
    if (known?.usable === true) return { tracker: await started(vm, wanted), reason: '' };
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
    if (candidate.usable) return { tracker: await started(vm, candidate.kind), reason: reasons.join('; ') };
    reasons.push(`${candidate.kind}: ${candidate.reason}`);
  }
  throw new CheckpointError(
    'TRACKER_UNAVAILABLE',
    `no dirty tracker can be used on ${vm.address}: ${reasons.join('; ')}`,
  );
}

async function started(vm: Vm, kind: string): Promise<DirtyTracker> {
  const tracker = vm.tracker(kind);
  await tracker.start();
  return tracker;
}
