/**
 * The agent inside the guest (qemu-ga) as far as freezing and its clock go, whichever way it is reached: its
 * socket, or libvirt.
 */

import { CheckpointError } from '../../../../src/errors.js';
import type { Json, JsonObject } from '../../../../src/types.js';
import { asObject, asText } from '../../../qemu/qmp-json.js';

export interface GuestAgent {
  /**
   * After a failure the next command starts from a clean connection.
   * @throws GUEST_AGENT when there is no answer in time, or the agent refuses
   */
  command(name: string, timeoutMs: number, args?: JsonObject): Promise<Json>;
  /** Of the connection, while there is one; absent where a manager has it. */
  readonly descriptor?: number | undefined;
  close(): void;
}

/** Name of the port by which QEMU, libvirt and the agent know each other. */
export const AGENT_PORT = 'org.qemu.guest_agent.0';

/**
 * The agent answers as soon as it has a CPU; a guest that has just been resumed under load may take a while
 * to give it one.
 */
export const THAW_LIMIT_MS = 10_000;

/** Ends a freeze. Does nothing to a guest that is not frozen. @throws GUEST_AGENT */
export async function thawGuest(agent: GuestAgent, timeoutMs = THAW_LIMIT_MS): Promise<void> {
  await agent.command('guest-fsfreeze-thaw', timeoutMs);
}

/** Sets the guest's clock, and with it the RTC where the guest has a program for that. @throws GUEST_AGENT */
export async function setClock(agent: GuestAgent, time: Date, timeoutMs: number): Promise<void> {
  // Nanoseconds since 1970: more than a number holds exactly, by less than the command takes.
  await agent.command('guest-set-time', timeoutMs, { time: time.getTime() * 1e6 });
}

export function agentError(what: string, hint: string, cause?: unknown): CheckpointError {
  return new CheckpointError('GUEST_AGENT', what, {
    hint,
    retryable: true,
    ...(cause === undefined ? {} : { cause }),
  });
}

/** The result in one reply of the agent. @throws GUEST_AGENT when the reply is an error */
export function resultOf(command: string, reply: Json): Json {
  const { return: result, error } = asObject(reply);
  if (result !== undefined) return result;
  const desc = asText(asObject(error).desc) || 'it answered with something that is no reply';
  throw new CheckpointError('GUEST_AGENT', `the guest's agent refused ${command}: ${desc}`, {
    hint: 'the log of qemu-ga in the guest says more; its configuration may block the command',
  });
}
