/**
 * Locks on open files: flock(2). They belong to the open file, end with the last process that has it open,
 * and work on every file that can be opened, those of /proc included.
 */

import { readFileSync } from 'node:fs';

import { libc, errnoName } from './libc.js';

const SYS_FLOCK = 73;
/** LOCK_EX | LOCK_NB */
const EXCLUSIVE_AT_ONCE = 6;

/** @returns false when somebody else has it @throws Error for anything else */
export function tryLock(descriptor: number): boolean {
  const { value, errno } = libc().syscall(SYS_FLOCK, descriptor, EXCLUSIVE_AT_ONCE);
  if (value === 0) return true;
  const name = errnoName(errno);
  if (name === 'EAGAIN' || name === 'EWOULDBLOCK') return false;
  throw new Error(`flock: ${name}`);
}

/**
 * Process that has the lock on the file with this inode; undefined when it cannot be seen. Source: proc(5),
 * locks.
 */
export function lockHolder(inode: number): number | undefined {
  try {
    const lines = readFileSync('/proc/locks', 'latin1').split('\n');
    for (const line of lines) {
      const [, pid, file] = /^\d+: FLOCK +\w+ +WRITE +(\d+) +([0-9a-f:]+) /.exec(line) ?? [];
      if (file?.split(':')[2] === `${inode}` && Number(pid) > 0) return Number(pid);
    }
  } catch {
    // It is asked for the sake of a message only.
  }
  return undefined;
}
