/**
 * A search that tries something on a running machine again and again, each time from the same moment:
 * checkpoint, try, rewind, try again. The machine keeps its process, its sockets and its network; a rewind
 * takes milliseconds.
 */

import { openSession, rewind, type HypervisorRegistry, type Repository } from '../../src/index.js';

export interface Search {
  readonly hypervisors: HypervisorRegistry;
  /** Such as qmp:/run/web1.qmp. */
  readonly address: string;
  readonly repository: Repository;
  readonly tries: number;
  /** Does something to the machine, which runs. @returns whether this is what is looked for */
  readonly attempt: (number: number, signal: AbortSignal) => Promise<boolean>;
  readonly signal: AbortSignal;
}

export interface Found {
  /**
   * Number of the try, from 0, as which the machine was left; undefined when none was it: then it is at the
   * checkpoint.
   */
  readonly found: number | undefined;
  readonly checkpointId: string;
  /** Of each rewind, in ms: how long the machine stood still. */
  readonly pauses: readonly number[];
}

/** @throws what a checkpoint and a rewind throw, what `attempt` throws, and the reason of the signal */
export async function search({ hypervisors, address, repository, ...more }: Search): Promise<Found> {
  const { tries, attempt, signal } = more;
  const session = await openSession(hypervisors, address, { repository, signal });
  try {
    const { checkpointId } = await session.checkpoint();
    const start = await repository.find(checkpointId, undefined, { signal });
    const pauses: number[] = [];
    for (let number = 0; number < tries; number++) {
      signal.throwIfAborted();
      if (await attempt(number, signal)) return { found: number, checkpointId, pauses };
      const { pauseMs } = await rewind(session, start, { signal });
      pauses.push(pauseMs);
    }
    return { found: undefined, checkpointId, pauses };
  } finally {
    await session.close();
  }
}
