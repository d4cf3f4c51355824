/** Follows an incoming migration over QMP until the VM stands or runs. */

import { setTimeout as delay } from 'node:timers/promises';

import { CheckpointError } from '../../../src/errors.js';
import type { Json } from '../../../src/types.js';
import type { Monitor } from '../../qemu/monitor.js';

/** After the last byte was taken, only device state and the disks' metadata are left to load. */
const COMPLETION_TIMEOUT_MS = 120_000;
const POLL_MS = 5;

/**
 * @param hasEnded why the process has ended, undefined while it runs
 * @returns the run state that QEMU reports once the migration is complete, such as running or paused
 * @throws RESTORE_FAILED, and what the monitor throws
 */
export async function incomingCompleted(
  monitor: Monitor,
  hasEnded: () => string | undefined,
  signal: AbortSignal | undefined,
): Promise<string> {
  const deadlineMs = Date.now() + COMPLETION_TIMEOUT_MS;
  for (;;) {
    signal?.throwIfAborted();
    const ended = hasEnded();
    if (ended !== undefined) throw new CheckpointError('RESTORE_FAILED', ended);
    const migration = fields(await monitor.execute('query-migrate'));
    if (migration.status === 'completed') break;
    if (migration.status === 'failed') {
      throw new CheckpointError(
        'RESTORE_FAILED',
        `QEMU could not load the stream: ${text(migration['error-desc'])}`,
      );
    }
    if (Date.now() > deadlineMs) {
      throw new CheckpointError(
        'RESTORE_FAILED',
        `QEMU took the whole stream but is still in state ${text(migration.status)}`,
      );
    }
    await delay(POLL_MS);
  }
  return text(fields(await monitor.execute('query-status')).status);
}

/**
 * The same of a VM that runs while its memory still comes in.
 * @returns the run state that QEMU reports once it no longer waits for its device state
 * @throws RESTORE_FAILED, and what the monitor throws
 */
export async function incomingStarted(
  monitor: Monitor,
  hasEnded: () => string | undefined,
  signal: AbortSignal | undefined,
): Promise<string> {
  const deadlineMs = Date.now() + COMPLETION_TIMEOUT_MS;
  for (;;) {
    signal?.throwIfAborted();
    const ended = hasEnded();
    if (ended !== undefined) throw new CheckpointError('RESTORE_FAILED', ended);
    const state = text(fields(await monitor.execute('query-status')).status);
    if (state !== 'inmigrate') return state;
    if (Date.now() > deadlineMs)
      throw new CheckpointError('RESTORE_FAILED', 'QEMU took the device state but does not run on it');
    await delay(POLL_MS);
  }
}

function fields(reply: Json): Readonly<Record<string, Json | undefined>> {
  return typeof reply === 'object' && reply !== null && !Array.isArray(reply)
    ? (reply as Record<string, Json>)
    : {};
}

function text(value: Json | undefined): string {
  return typeof value === 'string' ? value : 'unknown';
}
