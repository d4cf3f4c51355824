/** The part of a VM's contract that says whether its vCPUs run, stops them and lets them go on. */

export type RunState = 'running' | 'paused' | 'other';

/** For a pause in which nothing takes long. */
export const SHORT_PAUSE_LIMIT_MS = 10_000;

export interface PauseRequest {
  /** Called right before the VM is asked to stop; up to then it has run all the time. */
  readonly stopping?: (() => void) | undefined;
  /**
   * For how long the VM may stand still. A process of its own resumes it when this one has not done so a
   * moment after that, whatever holds it up. Default SHORT_PAUSE_LIMIT_MS.
   */
  readonly limitMs?: number | undefined;
}

/** Stopping the VM, and undoing it. */
export interface PauseControl {
  /**
   * Stops the vCPUs and waits for device I/O in flight.
   * @returns true when the VM was running and this call stopped it, false when it was paused already
   * @throws VM_STATE when it is neither, with nothing changed; VM_GONE; QMP_TIMEOUT, after which it may stand
   *   still; PAUSE_LIMIT
   */
  pause(request?: PauseRequest): Promise<boolean>;
  /** A guest that has to stop itself may take as long as this, and runs meanwhile. Default 0. */
  readonly slowestStopMs?: number;
  /**
   * Undoes `pause`: does nothing to a VM that this object did not stop.
   * @param running called as soon as the hypervisor says that the VM runs again, which is proven after that
   * @throws VM_NOT_RESUMED when the VM does not run afterwards; VM_STATE when somebody else has resumed it
   *   before, and PAUSE_LIMIT when that was the process that limits the pause, so that what was read in the
   *   pause is not of one moment: it runs, or stands still for their reasons; VM_GONE
   */
  resume(running?: () => void): Promise<void>;
}

export interface VmRunState extends PauseControl {
  read(): Promise<RunState>;
  /**
   * Begins what a pause needs and takes its time to start. Whoever is about to take checkpoints says so as soon as
   * it can; the pause waits for it. What fails is reported by the pause. Absent where nothing is to be begun.
   */
  prepare?(): void;
}
