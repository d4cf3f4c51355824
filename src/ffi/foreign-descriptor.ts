/** Descriptors of other processes: pidfd_open(2), pidfd_getfd(2). */

import { closeSync } from 'node:fs';

import { errnoName, libc } from './libc.js';

const SYS_PIDFD_OPEN = 434;
const SYS_PIDFD_GETFD = 438;

/** A descriptor of this process, or the name of the error. */
export type Duplicate =
  | { readonly descriptor: number; readonly error?: never }
  | { readonly descriptor?: never; readonly error: string };

/**
 * A duplicate of a descriptor of another process, which the caller closes. Needs the right to trace that process.
 * ESRCH when it has ended.
 */
export function duplicateOf(pid: number, descriptor: number): Duplicate {
  const process = libc().syscall(SYS_PIDFD_OPEN, pid, 0);
  if (process.value < 0) return { error: errnoName(process.errno) };
  try {
    const duplicated = libc().syscall(SYS_PIDFD_GETFD, process.value, descriptor, 0);
    return duplicated.value >= 0 ? { descriptor: duplicated.value } : { error: errnoName(duplicated.errno) };
  } finally {
    closeSync(process.value);
  }
}
