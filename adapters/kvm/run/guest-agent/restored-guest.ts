/**
 * The end of a restore, inside the guest: what its agent does once the VM runs.
 *
 * A checkpoint that was taken with frozen file systems has them frozen in its memory too, and the agent in it waits for
 * the thaw; whoever writes to them hangs until then. And the guest's clock goes on from where it stood at the
 * checkpoint: only the agent, or the guest's own NTP, brings it to the present.
 */

import { setTimeout as delay } from 'node:timers/promises';

import { describeError, isCheckpointError } from '../../../../src/errors.js';
import type { CheckpointSource, RestoreResult } from '../../../../src/hypervisor/restore.js';
import { setClock, thawGuest, type GuestAgent } from './guest-agent.js';
import { SocketAgent } from './socket-agent.js';

/** The agent finds its port opened anew, and libvirt has to notice that it has. */
const LIMIT_MS = 30_000;
const ATTEMPT_MS = 5000;
const RETRY_MS = 200;

export interface GuestWishes {
  /** The guest's clock is set to that of this host. */
  readonly setTime?: true;
}

/** What became of it, as part of the restore's result. */
type Tended = Pick<RestoreResult, 'frozenBecause' | 'notes'>;

/** The VM was restored by now: nothing here may fail that. */
export async function tendGuest(
  { frozen }: Pick<CheckpointSource, 'frozen'>,
  isRunning: boolean,
  agent: GuestAgent | undefined,
  { setTime }: GuestWishes,
): Promise<Tended> {
  const frozenBecause =
    frozen === undefined
      ? undefined
      : await tried(thawGuest, {
          isRunning,
          agent,
          whilePaused:
            'the VM is paused; have its agent thaw them once it runs (guest-fsfreeze-thaw, `virsh domfsthaw`)',
          otherwise: 'send it guest-fsfreeze-thaw',
        });
  const unsetBecause =
    setTime === undefined
      ? undefined
      : await tried((to, limitMs) => setClock(to, new Date(), limitMs), {
          isRunning,
          agent,
          whilePaused:
            'the VM is paused; have its agent set it once it runs (guest-set-time, `virsh domtime --now`)',
          otherwise: 'send it guest-set-time',
        });
  return {
    ...(frozenBecause === undefined ? {} : { frozenBecause }),
    ...(unsetBecause === undefined
      ? {}
      : { notes: [`the guest's clock still goes from the checkpoint: ${unsetBecause}`] }),
  };
}

/** The same by the agent's socket. */
export async function tendBySocket(
  source: Pick<CheckpointSource, 'frozen'>,
  isRunning: boolean,
  agentPath: string | undefined,
  wishes: GuestWishes,
): Promise<Tended> {
  const agent = agentPath === undefined ? undefined : new SocketAgent(agentPath);
  try {
    return await tendGuest(source, isRunning, agent, wishes);
  } finally {
    agent?.close();
  }
}

interface Circumstances {
  readonly isRunning: boolean;
  readonly agent: GuestAgent | undefined;
  readonly whilePaused: string;
  readonly otherwise: string;
}

/** @returns why it was not done; undefined when it was */
async function tried(
  attempt: (agent: GuestAgent, limitMs: number) => Promise<void>,
  { isRunning, agent, whilePaused, otherwise }: Circumstances,
): Promise<string | undefined> {
  if (!isRunning) return whilePaused;
  if (agent === undefined) return `no way to the guest's agent is known; ${otherwise}`;
  const until = Date.now() + LIMIT_MS;
  for (;;) {
    try {
      await attempt(agent, ATTEMPT_MS);
      return undefined;
    } catch (error) {
      const isFinal = isCheckpointError(error) && !error.retryable;
      if (isFinal || Date.now() > until) return describeError(error);
    }
    await delay(RETRY_MS);
  }
}
