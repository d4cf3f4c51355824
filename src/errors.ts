/**
 * All failures are of one class and carry a stable code.
 *
 * A code is part of the interface: scripts match on it, the CLI maps it to an exit code
 * (`cli/exit-codes.ts`), workers carry it across threads (`toJSON`/`fromJSON`, since structured clone drops
 * class and code). The text names the step and the object; `hint` says what an operator can do. Guest memory
 * and device state never appear in either.
 */

import { constants } from 'node:os';
import { getSystemErrorName } from 'node:util';

import type { JsonObject } from './types.js';

export const ERROR_CODES = [
  // storage backends
  'STORAGE_NOT_FOUND',
  'STORAGE_EXISTS',
  'STORAGE_FULL',
  'STORAGE_READ_ONLY',
  'STORAGE_IO',
  'STORAGE_UNCERTAIN',
  'STORAGE_RANGE',
  'STORAGE_ADDRESS',
  'STORAGE_UNSUITABLE',
  // keys of an encrypted repository
  'KEY_NEEDED',
  'KEY_WRONG',
  'KEY_UNEXPECTED',
  // repository
  'REPO_NOT_FOUND',
  'REPO_EXISTS',
  'REPO_NOT_EMPTY',
  'REPO_VERSION',
  'REPO_DAMAGED',
  'REPO_LOCKED',
  'CHECKPOINT_NOT_FOUND',
  'CHECKPOINT_AMBIGUOUS',
  'CHECKPOINT_GONE',
  'CHECKPOINT_UNCERTAIN',
  'CHECKPOINT_MISDATED',
  'CHAIN_WRONG_VM',
  // codec, bitmap, kernels
  'CODEC_MALFORMED',
  'DIRTY_BITMAP_SIZE',
  'KERNELS_UNAVAILABLE',
  'ZSTD_FAILED',
  'ZSTD_MISSING',
  // a virtual machine and its hypervisor
  'VM_ADDRESS',
  'VM_UNREACHABLE',
  'VM_BUSY',
  'VM_GONE',
  'VM_PERMISSION',
  'VM_UNSUPPORTED',
  'VM_STATE',
  'VM_FILLING',
  'VM_NOT_RESUMED',
  'PAUSE_LIMIT',
  'CAPTURE_FULL',
  'VM_LOCKED',
  'VM_MEMORY_READ',
  'VM_MEMORY_WRITE',
  'QMP_COMMAND',
  'QMP_TIMEOUT',
  'QMP_PROTOCOL',
  // dirty tracking
  'TRACKER_UNAVAILABLE',
  'TRACKER_OFF',
  'TRACKER_FAILED',
  // KVM by its own interface
  'KVM_UNAVAILABLE',
  'KVM_CALL',
  // the agent in the guest
  'GUEST_AGENT',
  'GUEST_FROZEN',
  // disks and hooks
  'DISK_NOT_COVERED',
  'DISK_SNAPSHOT_FAILED',
  'DISK_STALLED',
  'DISK_CHANGED',
  'HOOK_FAILED',
  // restore and export
  'RESTORE_TARGET_BUSY',
  'RESTORE_FAILED',
  'RESTORE_RIGHTS',
  'RESTORE_REPLACEABLE',
  'RESTORE_UNTRUSTED',
  'EXPORT_EXISTS',
  // rewind in place
  'REWIND_REFUSED',
  'REWIND_FAILED',
  'REWIND_UNFINISHED',
  // forks
  'FORK_REFUSED',
  'STREAM_MALFORMED',
  // traces
  'TRACE_MALFORMED',
  // system
  'FFI_FAILED',
  'WORKER_FAILED',
  'INTERRUPTED',
  'OUTPUT_FAILED',
  'USAGE',
  'CONFIG_INVALID',
  'SERVICE_NOT_RUNNING',
  'UNEXPECTED',
] as const;

export type ErrorCode = (typeof ERROR_CODES)[number];

export interface ErrorDetail {
  /** What the operator can do about it. */
  readonly hint?: string;
  /** True when the same call may succeed later without anybody changing anything. */
  readonly retryable?: boolean;
  readonly cause?: unknown;
  /** Names and numbers for programs: paths, ids, errno names. Never guest data. */
  readonly detail?: JsonObject;
}

export class CheckpointError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly retryable: boolean;
  readonly detail: JsonObject;

  constructor(code: ErrorCode, message: string, more: ErrorDetail = {}) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause });
    this.name = 'CheckpointError';
    this.code = code;
    this.hint = more.hint;
    this.retryable = more.retryable ?? false;
    this.detail = more.detail ?? {};
  }

  toJSON(): JsonObject {
    return {
      code: this.code,
      message: this.message,
      ...(this.hint === undefined ? {} : { hint: this.hint }),
      ...(this.retryable ? { retryable: true } : {}),
      ...(Object.keys(this.detail).length === 0 ? {} : { detail: this.detail }),
    };
  }

  /** The inverse of `toJSON`; anything that is not such an object becomes WORKER_FAILED. */
  static fromJSON(value: unknown): CheckpointError {
    if (typeof value === 'object' && value !== null && 'code' in value && 'message' in value) {
      const from = value as {
        code: ErrorCode;
        message: string;
        hint?: string;
        retryable?: boolean;
        detail?: JsonObject;
      };
      if (ERROR_CODES.includes(from.code)) return new CheckpointError(from.code, from.message, from);
    }
    return new CheckpointError('WORKER_FAILED', 'a worker failed without saying why');
  }
}

/** True for a CheckpointError, with that code when one is given. Works across realms and threads. */
export function isCheckpointError(error: unknown, code?: ErrorCode): error is CheckpointError {
  return (
    typeof error === 'object' &&
    error !== null &&
    (error as { name?: unknown }).name === 'CheckpointError' &&
    (code === undefined || (error as CheckpointError).code === code)
  );
}

/** The `code` of a Node.js system error (ENOSPC, ENOENT and so on), undefined for anything else. */
export function systemErrorCode(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  if (typeof error.code !== 'string') return undefined;
  const isUnnamed = error.code.startsWith(UNNAMED) && 'errno' in error && typeof error.errno === 'number';
  return isUnnamed ? systemErrorName(-(error.errno as number)) : error.code;
}

/** What Node.js says of an error that libuv does not know. EDQUOT, a quota that is used up, is one of them. */
const UNNAMED = 'Unknown system error';

/** @param errno positive, as in C */
export function systemErrorName(errno: number): string {
  const name = getSystemErrorName(-errno);
  if (!name.startsWith(UNNAMED)) return name;
  return Object.entries(constants.errno).find(([, number]) => number === errno)?.[0] ?? name;
}

/** Describes an error in one line, for a log or a wrapped message. */
export function describeError(error: unknown): string {
  if (typeof error === 'object' && error !== null && 'message' in error) return String(error.message);
  return String(error);
}
