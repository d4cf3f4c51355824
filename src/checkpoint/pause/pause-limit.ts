/**
 * For how long a checkpoint may have the VM stand still when the operator has said nothing: more than any part
 * of the pause takes by its own limit, so that a failure is reported as what it is, and little more, since a
 * guest that stands still is of no use to anybody.
 */

import { HOOK_LIMIT_MS } from './hooks.js';

export interface PauseWork {
  readonly maxPauseMs: number;
  readonly hasHook: boolean;
  readonly hasDiskSnapshots: boolean;
  /** Bytes that may have to be copied or sent in the pause, where that may be all of memory; otherwise 0. */
  readonly memoryBytes: number;
}

/** Stopping, which has QEMU write out its disks' caches; device state; what the machine is busy with. */
const SLACK_MS = 10_000;
/** Drivers of storage give up after 10 to 20 s, and clean up. */
const SNAPSHOTS_MS = 30_000;
/** A twentieth of what a copy does on a machine that has nothing else to do. */
const SLOWEST_COPY_BYTES_PER_MS = 131_072;

/** A timer counts 31 bits of milliseconds, and what is around the pause is added. */
const LONGEST_MS = 10 ** 9;

export function defaultPauseLimitMs(work: PauseWork): number {
  const limitMs =
    work.maxPauseMs +
    SLACK_MS +
    (work.hasHook ? HOOK_LIMIT_MS : 0) +
    (work.hasDiskSnapshots ? SNAPSHOTS_MS : 0) +
    Math.ceil(work.memoryBytes / SLOWEST_COPY_BYTES_PER_MS);
  return Math.min(limitMs, LONGEST_MS);
}
