/**
 * The end of a restore from a checkpoint that was taken with frozen file systems: they are frozen in its
 * memory too, and the agent in it waits for the thaw. Whoever writes to them hangs until then.
 */

import { setTimeout as delay } from 'node:timers/promises';

import { describeError } from '../../../../src/errors.js';
import type { CheckpointSource, RestoreResult } from '../../../../src/hypervisor/restore.js';
import { thawGuest, type GuestAgent } from './guest-agent.js';
import { SocketAgent } from './socket-agent.js';

/** The agent finds its port opened anew, and libvirt has to notice that it has. */
const LIMIT_MS = 30_000;
const ATTEMPT_MS = 5000;
const RETRY_MS = 200;

/**
 * @returns why the file systems are still frozen; undefined when they are not. The VM runs by now: nothing
 *   here may fail the restore
 */
export async function thawRestored(
  source: Pick<CheckpointSource, 'frozen'>,
  isRunning: boolean,
  agent: GuestAgent | undefined,
): Promise<string | undefined> {
  if (source.frozen === undefined) return undefined;
  if (!isRunning)
    return 'the VM is paused; have its agent thaw them once it runs (guest-fsfreeze-thaw, `virsh domfsthaw`)';
  if (agent === undefined) return "no way to the guest's agent is known; send it guest-fsfreeze-thaw";
  const until = Date.now() + LIMIT_MS;
  for (;;) {
    try {
      await thawGuest(agent, ATTEMPT_MS);
      return undefined;
    } catch (error) {
      if (Date.now() > until) return describeError(error);
    }
    await delay(RETRY_MS);
  }
}

/** The same by the agent's socket, as part of the restore's result. */
export async function thawBySocket(
  source: Pick<CheckpointSource, 'frozen'>,
  isRunning: boolean,
  agentPath: string | undefined,
): Promise<Pick<RestoreResult, 'frozenBecause'>> {
  const agent = agentPath === undefined ? undefined : new SocketAgent(agentPath);
  try {
    return asResult(await thawRestored(source, isRunning, agent));
  } finally {
    agent?.close();
  }
}

export function asResult(frozenBecause: string | undefined): Pick<RestoreResult, 'frozenBecause'> {
  return frozenBecause === undefined ? {} : { frozenBecause };
}
