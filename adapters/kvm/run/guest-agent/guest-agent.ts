/**
 * The agent inside the guest (qemu-ga) as far as freezing goes, whichever way it is reached: its socket, or
 * libvirt.
 */

import { CheckpointError } from '../../../../src/errors.js';
import type { Json } from '../../../../src/types.js';
import { asObject, asText } from '../../../qemu/qmp-json.js';

export interface GuestAgent {
  /**
   * A command without arguments. After a failure the next one starts from a clean connection.
   * @throws GUEST_AGENT when there is no answer in time, or the agent refuses
   */
  command(name: string, timeoutMs: number): Promise<Json>;
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
  throw agentError(
    `the guest's agent refused ${command}: ${desc}`,
    'the log of qemu-ga in the guest says more; its configuration may block the command',
  );
}
