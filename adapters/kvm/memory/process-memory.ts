/**
 * Reading and writing another process' memory with process_vm_readv(2) and process_vm_writev(2): many runs in one
 * call, straight into the memory given or out of it. Needs the right to ptrace the process; neither stops it nor
 * takes part in its faults beyond reading and writing.
 */

import { CheckpointError } from '../../../src/errors.js';
import { addressOf, errnoName, libc, type CallResult } from '../../../src/ffi/libc.js';

/** IOV_MAX of Linux. */
export const MAX_IOVECS = 1024;

const local = new BigUint64Array(2);

/**
 * Fills `into` with the bytes that `remote` names: u64 pairs (address, length), `remoteCount` of them, at
 * most MAX_IOVECS, together at least as long as `into`.
 * @returns bytes read; fewer when a page cannot be read: the first missing byte is the one that failed
 * @throws VM_GONE, VM_PERMISSION
 */
export function readVectors(
  pid: number,
  remote: BigUint64Array,
  remoteCount: number,
  into: Uint8Array,
): number {
  // SAFETY: the address is taken for this call alone: WebAssembly memory moves when it grows. `into` is
  // referenced by the caller's frame, and the kernel writes at most its length.
  local[0] = addressOf(into);
  local[1] = BigInt(into.length);
  return moved(pid, libc().processVmReadv(pid, local, 1, remote, remoteCount), 'read');
}

/**
 * Writes `from` to where `remote` says; otherwise as `readVectors`. The kernel takes it for a write of the process
 * itself: write-protection for a userfaultfd sees it.
 * @returns bytes written; fewer when a page cannot be written: the first missing byte is the one that failed
 * @throws VM_GONE, VM_PERMISSION
 */
export function writeVectors(
  pid: number,
  remote: BigUint64Array,
  remoteCount: number,
  from: Uint8Array,
): number {
  // SAFETY: as above; the kernel reads at most the length of `from`.
  local[0] = addressOf(from);
  local[1] = BigInt(from.length);
  return moved(pid, libc().processVmWritev(pid, local, 1, remote, remoteCount), 'written');
}

function moved(pid: number, { value, errno }: CallResult, what: 'read' | 'written'): number {
  if (value >= 0) return value;
  const name = errnoName(errno);
  if (name === 'EFAULT') return 0;
  if (name === 'ESRCH')
    throw new CheckpointError('VM_GONE', `process ${pid} has ended while its memory was ${what}`);
  if (name === 'EPERM' || name === 'EACCES') throw memoryPermission(pid);
  throw new CheckpointError('FFI_FAILED', `memory of process ${pid} cannot be ${what}: ${name}`, {
    detail: { pid, errno: name },
  });
}

/** Reads one stretch. @returns bytes read, as `readVectors` */
export function readMemory(pid: number, address: number, into: Uint8Array): number {
  return readVectors(pid, BigUint64Array.of(BigInt(address), BigInt(into.length)), 1, into);
}

export function memoryPermission(pid: number): CheckpointError {
  return new CheckpointError('VM_PERMISSION', `no permission to read the memory of process ${pid}`, {
    hint: 'run as root, or as the user of QEMU with CAP_SYS_PTRACE (or kernel.yama.ptrace_scope=0)',
    detail: { pid },
  });
}
