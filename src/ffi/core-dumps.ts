/**
 * Keeps the memory of this process out of core dumps: it holds guest memory, in WebAssembly memories, buffers
 * and registers of all threads.
 *
 * PR_SET_DUMPABLE (prctl(2)) covers all of that, wherever core dumps go, and ends with the program: what this
 * process starts can be dumped as ever. A limit of 0 (RLIMIT_CORE) would not hold for a handler behind a pipe,
 * and it and /proc/PID/coredump_filter would be handed on to every QEMU that a restore starts; MADV_DONTDUMP
 * would have to know every mapping. Its price: files of /proc/self belong to root meanwhile, so an
 * unprivileged Cairn opens its pagemap through `openOwnPagemap`, and its user's debugger needs root.
 */

import { openSync } from 'node:fs';

import { systemErrorCode } from '../errors.js';
import { libc } from './libc.js';

const SYS_PRCTL = 157;
const PR_GET_DUMPABLE = 3;
const PR_SET_DUMPABLE = 4;

/** For the whole process, threads that begin later too. Does nothing where there is no way to do it. */
export function keepOutOfCoreDumps(): void {
  try {
    libc().syscall(SYS_PRCTL, PR_SET_DUMPABLE, 0);
  } catch {
    // Another processor or C library: such a Cairn touches no VM, and commands on repositories go on.
  }
}

export function isInCoreDumps(): boolean {
  return libc().syscall(SYS_PRCTL, PR_GET_DUMPABLE).value !== 0;
}

/** /proc/self/pagemap, for reading and for its ioctl; the caller closes it. @throws as `openSync` */
export function openOwnPagemap(): number {
  try {
    return openSync('/proc/self/pagemap', 'r');
  } catch (error) {
    if (systemErrorCode(error) !== 'EACCES' || isInCoreDumps()) throw error;
  }
  // Files of /proc belong to this user only while the process may be dumped; who has one open keeps it.
  libc().syscall(SYS_PRCTL, PR_SET_DUMPABLE, 1);
  try {
    return openSync('/proc/self/pagemap', 'r');
  } finally {
    keepOutOfCoreDumps();
  }
}
