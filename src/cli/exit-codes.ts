/**
 * Exit codes. 0, 1, 3, 10, 11, 12 and 130 mean what they mean in restic; 2 is a usage error; 20 and up are
 * Cairn's own. Documented in docs/operations.md; part of the interface.
 */

import type { ErrorCode } from '../errors.js';

export const EXIT = {
  ok: 0,
  failure: 1,
  usage: 2,
  /** Done in part: a watcher some of whose checkpoints failed, disk snapshots that could not be removed. */
  incomplete: 3,
  repositoryMissing: 10,
  locked: 11,
  /** No key for an encrypted repository, or a wrong one. */
  wrongKey: 12,
  /** The guest is not in the run state it was found in. */
  notResumed: 20,
  /** The VM cannot be reached, or went away. */
  vmUnavailable: 21,
  /** Nothing was done, because it would not have been right on this VM or host. */
  refused: 22,
  /** Stored data is damaged; verify names it. */
  damaged: 23,
  /** The chain belongs to another VM. */
  wrongVm: 24,
  /** The storage is full, or cannot be read or written. */
  storage: 25,
  /** The storage gave no answer: whether the checkpoint was committed cannot be said. */
  uncertain: 26,
  /** The pause had to be ended before its time. The guest runs, and there is no checkpoint. */
  pauseLimit: 27,
  /** By a signal, or because nobody reads the output any more. */
  interrupted: 130,
} as const;

const OF_CODE: Partial<Record<ErrorCode, number>> = {
  USAGE: EXIT.usage,
  CONFIG_INVALID: EXIT.usage,
  REPO_NOT_FOUND: EXIT.repositoryMissing,
  REPO_NOT_EMPTY: EXIT.refused,
  REPO_LOCKED: EXIT.locked,
  VM_LOCKED: EXIT.locked,
  VM_NOT_RESUMED: EXIT.notResumed,
  GUEST_FROZEN: EXIT.notResumed,
  GUEST_AGENT: EXIT.refused,
  VM_ADDRESS: EXIT.usage,
  VM_UNREACHABLE: EXIT.vmUnavailable,
  VM_BUSY: EXIT.vmUnavailable,
  VM_GONE: EXIT.vmUnavailable,
  VM_PERMISSION: EXIT.vmUnavailable,
  QMP_TIMEOUT: EXIT.vmUnavailable,
  CHECKPOINT_MISDATED: EXIT.refused,
  VM_STATE: EXIT.refused,
  VM_FILLING: EXIT.refused,
  VM_UNSUPPORTED: EXIT.refused,
  TRACKER_UNAVAILABLE: EXIT.refused,
  DISK_NOT_COVERED: EXIT.refused,
  DISK_CHANGED: EXIT.refused,
  DISK_STALLED: EXIT.refused,
  RESTORE_TARGET_BUSY: EXIT.refused,
  RESTORE_RIGHTS: EXIT.refused,
  RESTORE_REPLACEABLE: EXIT.refused,
  RESTORE_UNTRUSTED: EXIT.refused,
  EXPORT_EXISTS: EXIT.refused,
  REWIND_REFUSED: EXIT.refused,
  REWIND_FAILED: EXIT.notResumed,
  REWIND_UNFINISHED: EXIT.refused,
  FORK_REFUSED: EXIT.refused,
  REPO_DAMAGED: EXIT.damaged,
  CHAIN_WRONG_VM: EXIT.wrongVm,
  STORAGE_UNSUITABLE: EXIT.refused,
  KEY_NEEDED: EXIT.wrongKey,
  KEY_WRONG: EXIT.wrongKey,
  KEY_UNEXPECTED: EXIT.refused,
  STORAGE_FULL: EXIT.storage,
  STORAGE_READ_ONLY: EXIT.storage,
  STORAGE_IO: EXIT.storage,
  STORAGE_UNCERTAIN: EXIT.storage,
  CHECKPOINT_UNCERTAIN: EXIT.uncertain,
  PAUSE_LIMIT: EXIT.pauseLimit,
  CAPTURE_FULL: EXIT.refused,
  INTERRUPTED: EXIT.interrupted,
};

export function exitCodeOf(code: ErrorCode): number {
  return OF_CODE[code] ?? EXIT.failure;
}
