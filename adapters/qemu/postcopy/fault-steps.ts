/**
 * Numbers the steps of a page server, for tests that kill it. CAIRN_FILL_FAULT_STEP is the number of a step, counted
 * from 1, at which the process kills itself with SIGKILL; with `all` behind it (12all) the process that looks after it
 * goes first. A write is a step of its own at which only its first half gets out. Costs a comparison where the variable
 * is not set.
 */

const [, number = '0', all = ''] = /^(\d+)(all)?$/.exec(process.env.CAIRN_FILL_FAULT_STEP ?? '') ?? [];
let left = Number(number);

/** @returns true when the process is to end in the middle of this step: `die` does it */
export function isFaultStep(): boolean {
  return left > 0 && --left === 0;
}

export function faultStep(): void {
  if (isFaultStep()) die();
}

export function die(): void {
  if (all !== '') process.kill(process.ppid, 'SIGKILL');
  process.kill(process.pid, 'SIGKILL');
}
