/**
 * Pausing and resuming through libvirt itself, not past it: virDomainSuspend and virDomainResume.
 *
 * libvirt would follow a `stop` and `cont` of the monitor by QEMU's events, so virsh would agree too. But
 * only its own calls wait for a job that holds the domain, and only they take the disk leases (virtlockd,
 * sanlock) back that a pause gives up.
 */

import { fileURLToPath } from 'node:url';

import type { GuardProgram } from '../../guard/pause-guard.js';
import type { LibvirtDomain } from '../domain.js';

/** The process that resumes the domain when this one is killed in the pause. */
export function libvirtGuard(domain: LibvirtDomain): GuardProgram {
  return guardOf(domain, './pause-guard-main.js');
}

/**
 * A guard of the domain in a module beside this one, which gets the URI of libvirt and the UUID before
 * `args`.
 */
export function guardOf(
  { connection, uuid }: LibvirtDomain,
  module: string,
  ...args: readonly string[]
): GuardProgram {
  return {
    modulePath: fileURLToPath(new URL(module, import.meta.url)),
    args: [connection.uri, uuid, ...args],
    // Where a user's own daemon listens.
    env: {
      HOME: process.env.HOME,
      XDG_RUNTIME_DIR: process.env.XDG_RUNTIME_DIR,
      XDG_CACHE_HOME: process.env.XDG_CACHE_HOME,
    },
  };
}

/**
 * Stops the domain, as `stop` does a QEMU.
 * @throws VM_STATE, retryable, while libvirt is busy with the domain; VM_GONE
 */
export async function stopDomain(domain: LibvirtDomain): Promise<void> {
  await domain.awaitNoJob();
  await domain.suspend();
}

/**
 * Continues the domain, as `cont` does a QEMU; no error when it runs already. The call is under way when this
 * returns.
 * @throws VM_STATE, VM_GONE
 */
export async function continueDomain(domain: LibvirtDomain): Promise<void> {
  try {
    await domain.resume();
  } catch (error) {
    if ((await domain.state()) !== 'running') throw error;
  }
}
