/**
 * Sweeps in little room. A pack is written anew beside the old one, which takes room before it frees any. When
 * there is none, what can go whole goes first, with every pack that stays as it is; that may make the room.
 */

import type { Manifest } from '../../format/manifest.js';
import { sweep, type SweepOptions, type SweepResult } from './sweep.js';
import { planSweep, type SweepPlan, type SweepPlanOptions, type SweepSource } from './sweep-plan.js';

/**
 * @param manifests all that stay
 * @param plan of these, made just now
 * @throws REPO_LOCKED, and what the backend throws; what is done until then is done
 */
export async function sweepToTheEnd(
  source: SweepSource,
  manifests: readonly Manifest[],
  plan: SweepPlan,
  options: SweepOptions & Pick<SweepPlanOptions, 'thinAbove'>,
): Promise<SweepResult> {
  const sweepAbove = async (thinAbove: number | undefined): Promise<SweepResult> => {
    const { signal } = options;
    return sweep(source, await planSweep(source, manifests, [], { signal, thinAbove }), options);
  };
  let result = await sweep(source, plan, options);
  while (result.isShortOfRoom && !result.isCutShort) {
    const whole = await sweepAbove(Infinity);
    if (whole.freedBytes === 0) break;
    result = sumOf(sumOf(result, whole), await sweepAbove(options.thinAbove));
  }
  return result;
}

/** What two rounds did, with what the second one left. */
function sumOf(first: SweepResult, second: SweepResult): SweepResult {
  return {
    freedBytes: first.freedBytes + second.freedBytes,
    removedObjects: first.removedObjects + second.removedObjects,
    thinnedPacks: first.thinnedPacks + second.thinnedPacks,
    problems: [...first.problems, ...second.problems],
    isShortOfRoom: second.isShortOfRoom,
    isCutShort: second.isCutShort,
  };
}
