/**
 * Tells a process from a later one with the same id: its start time in clock ticks, field 22 of
 * /proc/PID/stat (proc(5)).
 */

import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';

/** States of a zombie and of a process that is being removed. */
const ENDED: ReadonlySet<string> = new Set(['Z', 'X']);

export interface ProcessIdentity {
  readonly pid: number;
  /** Clock ticks since boot, as in /proc/PID/stat. */
  readonly startTime: string;
}

/** Empty when there is no such process, or one that has ended and that its parent has not waited for. */
export async function processStartTime(pid: number): Promise<string> {
  return startTimeIn(await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => ''));
}

/** Does what `processStartTime` does, for callers that cannot wait: a worker that copies, a lock. */
export function processStartTimeSync(pid: number): string {
  try {
    return startTimeIn(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch {
    return '';
  }
}

/** This process. */
export function ownIdentity(): ProcessIdentity {
  return { pid: process.pid, startTime: processStartTimeSync(process.pid) };
}

export async function isSameProcess(pid: number, startTime: string): Promise<boolean> {
  return startTime !== '' && (await processStartTime(pid)) === startTime;
}

function startTimeIn(stat: string): string {
  // The command name (field 2) may hold spaces and brackets; what follows the last bracket starts at field 3.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return ENDED.has(fields[0] ?? '') ? '' : (fields[19] ?? '');
}

/** Enough of a command line to tell what it is. */
const COMMAND_LINE_LENGTH = 120;

/** What a process of this host runs, in one line; empty when it has ended or may not be looked at. */
export function commandLineOf(pid: number): string {
  try {
    const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    // Control characters of a name must not reach a terminal.
    const text = words
      .join(' ')
      .replace(/[\0-\x1f\x7f-\x9f]+/g, '?')
      .trim();
    return text.length > COMMAND_LINE_LENGTH ? `${text.slice(0, COMMAND_LINE_LENGTH)}...` : text;
  } catch {
    return '';
  }
}
