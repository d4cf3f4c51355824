/**
 * Numbers the places at which a checkpoint or a rewind may be cut off. A test sets CAIRN_FAULT_POINT to a number and the
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

/** The same of a rewind. */
export const REWIND_FAULT_POINTS = {
  rewindPrepared: 101,
  rewindPaused: 102,
  rewindNoted: 103,
  rewindHalfWritten: 104,
  rewindWritten: 105,
  rewindCleared: 106,
  rewindLoaded: 107,
  rewindLookedAgain: 108,
  rewindWhole: 109,
  rewindResumed: 110,
  rewindLedgerWritten: 111,
} as const;

const ALL = { ...FAULT_POINTS, ...REWIND_FAULT_POINTS };

export type FaultPoint = keyof typeof FAULT_POINTS;
export type RewindFaultPoint = keyof typeof REWIND_FAULT_POINTS;

let armed = Number(process.env.CAIRN_FAULT_POINT ?? '0');

/** Dies, or stands still, here when this is the point asked for. */
export function faultPoint(name: FaultPoint | RewindFaultPoint): void {
  if (armed !== ALL[name]) return;
  armed = 0;
  process.kill(process.pid, process.env.CAIRN_FAULT_SIGNAL === 'SIGSTOP' ? 'SIGSTOP' : 'SIGKILL');
}
