/**
 * Several machines out of one checkpoint that share its memory copy on write. The adapter does one step at a
 * time; in which order, and what becomes of the others when one fails, is the caller's (`src/restore/fork`).
 *
 *     planForks -> fill -> start, of each -> run, of each -> settle
 *                   |         |                |
 *                   +---------+----------------+--> end: nothing runs, and no folder is left
 */

import type { ForkOrigin } from './fork-origin.js';
import type { RestorePlan } from './restore.js';

export interface ForkRequest {
  /** Of the children, all different; each fit for the name of a folder. */
  readonly names: readonly string[];
  /** Absolute path of the folder in which each child gets one of its own. */
  readonly folder: string;
  /** What a checkpoint of a child says of where it came from. */
  readonly origin: ForkOrigin;
  /** Of this host, for what belongs to one process. */
  readonly runtimeDir: string;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
}

export interface ForkedVm {
  /** From 0. */
  readonly index: number;
  readonly name: string;
  readonly vmAddress: string;
  readonly pid: number;
  /** As in /proc/PID/stat: with it, a process that comes later is not taken for this one. */
  readonly startTime: string;
  /** What it has for itself: sockets, logs, disks. */
  readonly folder: string;
  /** Empty where the VM has none. */
  readonly uuid: string;
  /** Of its network cards, in the order of the command line. */
  readonly macs: readonly string[];
  /** Of its VM generation id; empty where it has no such device. */
  readonly generationId: string;
}

export interface VmForks {
  /** What would be run, for who has to decide whether the checkpoint is to be trusted. */
  readonly plan: RestorePlan;
  /** Folders of what all children stand on, once `fill` has made any. They go after the last child. */
  readonly sharedFolders: readonly string[];
  /** What is not as it was although all goes well, for the operator. */
  readonly notes: readonly string[];
  /**
   * What the children share is made: memory, read and verified, and disks. @throws REPO_DAMAGED,
   * STORAGE_FULL, RESTORE_FAILED
   */
  fill(): Promise<void>;
  /**
   * One child with all of its state, that has not run yet. Several may be started at a time.
   * @throws RESTORE_FAILED, FORK_REFUSED when its folder is there already; the reason of the signal
   */
  start(index: number): Promise<ForkedVm>;
  /** @throws RESTORE_FAILED, VM_GONE */
  run(index: number): Promise<void>;
  /** From here on the children are by themselves. Without it they end when this process does. */
  settle(): Promise<void>;
  /**
   * Ends every child and removes what was made. Never throws. @returns what is left all the same, in words
   */
  end(): Promise<readonly string[]>;
}
