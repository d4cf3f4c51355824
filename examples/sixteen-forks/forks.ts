/** Many machines out of one checkpoint, each of which does a part of the work, and then goes. */

import {
  endForks,
  forkCheckpoint,
  type ForkedVm,
  type ForkOptions,
  type ForkResult,
} from '../../src/index.js';

/**
 * @param work is done on all children at the same time, which run
 * @returns what came out, in the order of the children, and how long it took until they ran
 * @throws what a fork throws, and what `work` throws first; no child is left, however it ends
 */
export async function onForks<T>(
  options: ForkOptions,
  work: (child: ForkedVm) => Promise<T>,
): Promise<{ readonly results: readonly T[]; readonly times: ForkResult['times'] }> {
  const forks = await forkCheckpoint(options);
  try {
    return { results: await Promise.all(forks.children.map(work)), times: forks.times };
  } finally {
    await endForks(forks);
  }
}
