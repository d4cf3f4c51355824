/** The few xenstore nodes that matter here, by meaning. Source: docs/misc/xenstore-paths.pandoc of Xen. */

import { CheckpointError } from '../../../src/errors.js';
import type { LibraryCalls } from '../ffi/library.js';

const REQUEST = 'suspend';

/** Undefined when there is no such node. */
export function storeText(calls: LibraryCalls, path: string): string | undefined {
  const bytes = calls.storeRead(path);
  return bytes === null ? undefined : Buffer.from(bytes).toString('latin1');
}

/** The guest's kernel says that it can suspend itself when asked to. */
export function offersSuspend(calls: LibraryCalls, domid: number): boolean {
  return storeText(calls, `/local/domain/${domid}/control/feature-suspend`) === '1';
}

/** @throws VM_STATE when another request (a shutdown, somebody else's suspend) is on its way, FFI_FAILED */
export function requestSuspend(calls: LibraryCalls, domid: number): void {
  const path = shutdownPath(domid);
  const pending = storeText(calls, path);
  if (pending !== undefined && pending !== '') {
    throw new CheckpointError('VM_STATE', `domain ${domid} has been asked to ${pending} by somebody else`, {
      retryable: true,
      hint: 'wait until that is over',
    });
  }
  if (!calls.storeWrite(path, Buffer.from(REQUEST, 'latin1'))) {
    throw new CheckpointError('FFI_FAILED', `writing ${path} to xenstore failed`);
  }
}

/**
 * Takes a request back that the guest has not seen yet.
 * @returns false when it has seen it, and is about to suspend
 */
export function withdrawSuspend(calls: LibraryCalls, domid: number): boolean {
  return calls.storeReplace(shutdownPath(domid), REQUEST, '');
}

export function suspendIsPending(calls: LibraryCalls, domid: number): boolean {
  return storeText(calls, shutdownPath(domid)) === REQUEST;
}

function shutdownPath(domid: number): string {
  return `/local/domain/${domid}/control/shutdown`;
}
