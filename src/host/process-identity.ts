/**
 * Tells a process from a later one with the same id by its start time in clock ticks, field 22 of
 * /proc/PID/stat (proc(5)).
 */

import { readFile } from 'node:fs/promises';

/** Empty when there is no such process. */
export async function processStartTime(pid: number): Promise<string> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'latin1');
    // The command name (field 2) may hold spaces and brackets; what follows the last bracket starts at field
    // 3.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '';
  } catch {
    return '';
  }
}

export async function isSameProcess(pid: number, startTime: string): Promise<boolean> {
  return startTime !== '' && (await processStartTime(pid)) === startTime;
}
