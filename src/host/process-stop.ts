/**
 * Why a process answers nobody although it is there: it was stopped as a whole, by a signal, a debugger or the
 * freezer of its control group (proc(5); cgroup v2, cgroup.freeze).
 */

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

const CGROUPS = '/sys/fs/cgroup';

export interface ProcessStop {
  readonly what: string;
  readonly hint: string;
}

/** Undefined for a process that is not stopped, has ended or may not be looked at. */
export async function whyStopped(pid: number): Promise<ProcessStop | undefined> {
  const state = /^State:\s*(\S)/m.exec(await text(`/proc/${pid}/status`))?.[1];
  if (state === 'T') {
    return { what: 'was stopped by a signal', hint: `kill -CONT ${pid} has it go on` };
  }
  if (state === 't') {
    return {
      what: 'is held by a debugger',
      hint: `let go of process ${pid}: TracerPid in /proc/${pid}/status`,
    };
  }
  const group = /^0::(.*)$/m.exec(await text(`/proc/${pid}/cgroup`))?.[1];
  if (group === undefined) return undefined;
  // A frozen group freezes those below it as well, and cgroup.events says so of each.
  const events = await text(join(CGROUPS, group, 'cgroup.events'));
  if (!/^frozen 1$/m.test(events)) return undefined;
  return {
    what: `is frozen with its control group ${group}`,
    hint: 'thaw it: docker unpause, systemctl thaw, or 0 into cgroup.freeze of the group that was frozen',
  };
}

function text(path: string): Promise<string> {
  return readFile(path, 'latin1').catch(() => '');
}
