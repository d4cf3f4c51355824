/** libvirt's errors as Cairn's. Source: virErrorNumber of virterror.h. */

import { CheckpointError, type ErrorCode } from '../../../src/errors.js';

const CODES: ReadonlyMap<number, ErrorCode> = new Map([
  [3, 'VM_UNSUPPORTED'], // NO_SUPPORT
  [29, 'VM_PERMISSION'], // OPERATION_DENIED
  [38, 'VM_UNREACHABLE'], // SYSTEM_ERROR
  [39, 'VM_UNREACHABLE'], // RPC
  [42, 'VM_ADDRESS'], // NO_DOMAIN
  [45, 'VM_PERMISSION'], // AUTH_FAILED
  [55, 'VM_STATE'], // OPERATION_INVALID
  [68, 'VM_STATE'], // OPERATION_TIMEOUT: another job holds the domain
  [79, 'VM_PERMISSION'], // AUTH_CANCELLED
  [80, 'VM_PERMISSION'], // AUTH_UNAVAILABLE
  [88, 'VM_PERMISSION'], // ACCESS_DENIED
]);
const OPERATION_TIMEOUT = 68;

export interface LibvirtFailure {
  readonly code: number;
  readonly message: string;
}

export function describeFailure(failure: LibvirtFailure | undefined): {
  readonly code: ErrorCode;
  readonly message: string;
} {
  const message = failure?.message ?? 'libvirt does not say why';
  // A socket that may not be opened is a plain system error to libvirt.
  if (/permission denied|authentication (failed|unavailable)/i.test(message))
    return { code: 'VM_PERMISSION', message };
  if (/domain is not running|monitor socket|exited/i.test(message)) return { code: 'VM_GONE', message };
  return { code: CODES.get(failure?.code ?? 0) ?? 'VM_STATE', message };
}

export function libvirtError(step: string, failure: LibvirtFailure | undefined): CheckpointError {
  const { code, message } = describeFailure(failure);
  const isHeld = failure?.code === OPERATION_TIMEOUT;
  return new CheckpointError(code, `${step}: ${message}`, {
    retryable: isHeld || code === 'VM_UNREACHABLE',
    ...(isHeld ? { hint: 'another operation of libvirt holds the domain; virsh domjobinfo shows it' } : {}),
    detail: { libvirt: failure?.code ?? 0 },
  });
}
