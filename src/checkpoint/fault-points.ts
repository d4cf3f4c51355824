/**
 * Numbers the places at which a checkpoint may be cut off. A test sets CAIRN_FAULT_POINT to a number and the
 * process kills itself with SIGKILL when it gets there: what a crash, the OOM killer or a power cut would do,
 * made repeatable. With CAIRN_FAULT_SIGNAL=SIGSTOP it stands still instead, once, until it is continued: what
 * storage that hangs would do. Costs one comparison when the variable is not set.
 */

export const FAULT_POINTS = {
  beforeHarvest: 1,
  afterHarvest: 2,
  duringRound: 3,
  afterPause: 4,
  duringCopy: 5,
  beforeResume: 6,
  afterResume: 7,
  duringEncode: 8,
  packWritten: 9,
  packDurable: 10,
  indexDurable: 11,
  manifestDurable: 12,
  ledgerWritten: 13,
  afterFreeze: 14,
} as const;

export type FaultPoint = keyof typeof FAULT_POINTS;

let armed = Number(process.env.CAIRN_FAULT_POINT ?? '0');

/** Dies, or stands still, here when this is the point asked for. */
export function faultPoint(name: FaultPoint): void {
  if (armed !== FAULT_POINTS[name]) return;
  armed = 0;
  process.kill(process.pid, process.env.CAIRN_FAULT_SIGNAL === 'SIGSTOP' ? 'SIGSTOP' : 'SIGKILL');
}
