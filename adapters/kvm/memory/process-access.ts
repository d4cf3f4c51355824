/** Whether this process may read the memory of another one, found out without reading any. */

import { closeSync, openSync } from 'node:fs';

/** Opening /proc/PID/mem takes the permission check of process_vm_readv(2) and ptrace(2). */
export function mayReadMemory(pid: number): boolean {
  try {
    closeSync(openSync(`/proc/${pid}/mem`, 'r'));
    return true;
  } catch {
    return false;
  }
}
