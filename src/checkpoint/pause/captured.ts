/** What a capture brings back from the pause. */

import type { DiskSnapshot } from '../../hypervisor/disks.js';
import type { FrozenGuest } from '../../hypervisor/freezer.js';
import type { Stopwatch } from './stopwatch.js';

export interface PhaseTimes {
  /** Stopping the vCPUs and draining device I/O. */
  readonly stopMs: number;
  /** Reading and clearing the tracker inside the pause. */
  readonly harvestMs: number;
  /** Copying pages inside the pause. */
  readonly copyMs: number;
  /** Having the device state written; runs beside the copy. */
  readonly deviceStateMs: number;
  readonly disksMs: number;
  readonly hookMs: number;
  /** Time from asking for the resume until the VM runs. */
  readonly resumeMs: number;
  /**
   * Short stops before the pause, in live rounds, of a tracker that clears only while the VM stands. Not part
   * of `pauseMs`.
   */
  readonly roundStopsMs: number;
}

/** What the pause left behind, for the manifest and the summary. */
export interface Captured {
  readonly deviceState: Uint8Array;
  readonly disks: readonly DiskSnapshot[];
  readonly frozen: FrozenGuest | undefined;
  /** Time for which the guest's file systems were frozen, as seen from here; 0 when they were not. */
  readonly frozenMs: number;
  readonly pauseMs: number;
  readonly phases: PhaseTimes;
  readonly rounds: number;
  readonly dirtyPages: number;
  readonly pausePages: number;
  readonly warnings: readonly string[];
  /** The run state in which the VM was found and left. */
  readonly runState: 'running' | 'paused';
}

export function phaseTimes(watch: Stopwatch, roundStopsMs: number): PhaseTimes {
  return {
    stopMs: watch.total('stop'),
    harvestMs: watch.total('harvest'),
    copyMs: watch.total('copy'),
    deviceStateMs: watch.total('deviceState'),
    disksMs: watch.total('disks'),
    hookMs: watch.total('hook'),
    resumeMs: watch.total('resume'),
    roundStopsMs,
  };
}
