/**
 * The part of a VM's contract that puts a running VM back to an earlier checkpoint, in its own process. Absent where
 * that is not possible.
 *
 *     prepare            everything that can be refused is; what the pause needs is made
 *     pause              the VM stands still, as for a checkpoint
 *     commit             a durable note: from here on nobody resumes the VM but who finishes the rewind
 *     write              guest memory, as often as it takes
 *     load               device state and disks; rewrites parts of guest memory on the way
 *     write              what `load` has rewritten
 *     finish             the note goes, the VM runs
 *
 * A process that dies behind `commit` leaves the VM paused, and the note. The next one takes the rewind up from its
 * beginning: each step may be done again.
 */

import type { PageRuns } from '../types.js';
import type { DiskSnapshot } from './disks.js';
import type { MemoryLayout } from './memory-layout.js';

/** What has to be known of a rewind that did not come to its end. */
export interface RewindNote {
  readonly repositoryId: string;
  readonly chain: string;
  /** The checkpoint that the VM was being put back to. */
  readonly targetId: string;
  /** Every page that is not marked as written is as it was in one of these. */
  readonly mayHold: readonly string[];
  /** Of the tracker's record that the marks are of. */
  readonly token: string;
  readonly wasRunning: boolean;
}

export interface RewindTarget {
  readonly checkpointId: string;
  readonly machineType: string;
  readonly layout: MemoryLayout;
  readonly disks: readonly DiskSnapshot[];
  readonly deviceState: Uint8Array;
}

export interface VmRewind {
  /** A rewind of this VM that was cut off behind `commit`. */
  unfinished(): RewindNote | undefined;
  /**
   * The VM stands still for the moment in which it says what devices it has; nothing else is changed.
   * @param keepDisks the operator says that the disks may stay as they are
   * @throws REWIND_REFUSED, VM_STATE, VM_UNSUPPORTED, DISK_NOT_COVERED, VM_GONE
   */
  prepare(target: RewindTarget, options: { readonly keepDisks: boolean }): Promise<PreparedRewind>;
}

export interface PreparedRewind {
  /** Disks that go back as well, in words for the operator. */
  readonly disks: readonly string[];
  /**
   * @param stopping called right before the VM is asked to stop
   * @returns whether the VM ran
   * @throws as `PauseControl.pause`
   */
  pause(stopping: () => void): Promise<boolean>;
  /** Undoes `pause`, as long as nothing is committed. @throws as `PauseControl.resume` */
  giveUp(): Promise<void>;
  /** @throws PAUSE_LIMIT, VM_STATE, STORAGE_FULL with nothing written */
  commit(note: RewindNote): Promise<void>;
  /**
   * @param bytes the pages of `runs`, one after the other; null: zeros
   * @throws VM_GONE, VM_PERMISSION, VM_MEMORY_WRITE
   */
  write(runs: PageRuns, bytes: Uint8Array | null): void;
  /** @throws REWIND_FAILED, after which the VM must not run; VM_GONE, QMP_TIMEOUT */
  load(): Promise<void>;
  /**
   * @param runs the VM is to go on
   * @param running called as soon as it does
   * @throws REWIND_FAILED when memory is not laid out as before, VM_NOT_RESUMED, VM_GONE
   */
  finish(runs: boolean, running: () => void): Promise<void>;
  /** Lets go of what `prepare` made. Never throws. */
  close(): Promise<void>;
}
