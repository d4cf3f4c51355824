/**
 * Waking a suspended domain: what the adapter, its guard process and the recovery after a crash have in
 * common.
 */

import { CheckpointError, isCheckpointError } from '../../../src/errors.js';
import type { XenDomain } from '../domain/domain.js';

/**
 * The guest's suspend call returns "cancelled" and it goes on where it was; xenstored is told that the domain
 * lives. Does nothing for a domain that is not suspended.
 * @returns true when the domain was suspended and is not any more
 * @throws VM_NOT_RESUMED, VM_GONE
 */
export function resumeDomain(domain: XenDomain): boolean {
  if (!domain.info().isSuspended) return false;
  const done = domain.calls.resume(domain.domid);
  const left = domain.info();
  if (left.isSuspended) {
    throw new CheckpointError(
      'VM_NOT_RESUMED',
      `domain ${domain.domid} is still suspended after its resume`,
      {
        hint: 'xl destroy it and restore its last checkpoint',
        detail: { domid: domain.domid, errno: done.errno },
      },
    );
  }
  // Without this call xenstored goes on treating the domain as one that shut down: its watches and `xl list`
  // would tell so.
  domain.calls.storeResume(domain.domid);
  return true;
}

/**
 * Wakes a domain. Its device model goes on first: a guest that runs without it would find its
 * devices gone. One that has ended cannot be waited for.
 * @returns as `resumeDomain`
 * @throws VM_NOT_RESUMED, VM_GONE, and what the resume of the device model throws, with the domain left as it
 *   was
 */
export async function wake(
  domain: XenDomain,
  deviceModel: { resume(): Promise<void> } | undefined,
): Promise<boolean> {
  let ended: unknown;
  try {
    await deviceModel?.resume();
  } catch (error) {
    if (!isCheckpointError(error, 'VM_UNREACHABLE')) throw error;
    ended = error;
  }
  const woken = resumeDomain(domain);
  if (ended === undefined) return woken;
  throw new CheckpointError(
    'VM_NOT_RESUMED',
    `domain ${domain.domid} was resumed, but its device model has ended`,
    { hint: 'xl destroy it and restore its last checkpoint', cause: ended },
  );
}
