/** Follows an incoming migration over QMP until the VM stands or runs. */

import { setTimeout as delay } from 'node:timers/promises';

import { CheckpointError } from '../../../src/errors.js';
import type { Json } from '../../../src/types.js';
import type { Monitor } from '../../qemu/monitor.js';

/** After the last byte was taken, only device state and the disks' metadata are left to load. */
const COMPLETION_TIMEOUT_MS = 120_000;
const POLL_MS = 5;

/** What is asked between two looks. */
interface Incoming {
  readonly monitor: Monitor;
  /** Why the process has ended; undefined while it runs. */
  readonly hasEnded: () => string | undefined;
  readonly signal: AbortSignal | undefined;
}

/**
 * @returns the run state that QEMU reports once the migration is complete, such as running or paused
 * @throws RESTORE_FAILED, and what the monitor throws
 */
export async function incomingCompleted(incoming: Incoming): Promise<string> {
  let status: Json | undefined;
  const isCompleted = async ({ monitor }: Incoming): Promise<true | undefined> => {
    const migration = fields(await monitor.execute('query-migrate'));
    ({ status } = migration);
    if (status === 'failed') throw failed(`QEMU could not load the stream: ${text(migration['error-desc'])}`);
    return status === 'completed' || undefined;
  };
  await until(
    incoming,
    isCompleted,
    () => `QEMU took the whole stream but is still in state ${text(status)}`,
  );
  return runState(incoming);
}

/**
 * The same of a VM that runs while its memory still comes in.
 * @returns the run state that QEMU reports once it no longer waits for its device state
 * @throws RESTORE_FAILED, and what the monitor throws
 */
export function incomingStarted(incoming: Incoming): Promise<string> {
  const started = async (one: Incoming): Promise<string | undefined> => {
    const state = await runState(one);
    return state === 'inmigrate' ? undefined : state;
  };
  return until(incoming, started, () => 'QEMU took the device state but does not run on it');
}

/** Asks again and again. @param isLate what is the matter when it takes too long */
async function until<T>(
  incoming: Incoming,
  ask: (incoming: Incoming) => Promise<T | undefined>,
  isLate: () => string,
): Promise<T> {
  const deadlineMs = Date.now() + COMPLETION_TIMEOUT_MS;
  for (;;) {
    incoming.signal?.throwIfAborted();
    const ended = incoming.hasEnded();
    if (ended !== undefined) throw failed(ended);
    const found = await ask(incoming);
    if (found !== undefined) return found;
    if (Date.now() > deadlineMs) throw failed(isLate());
    await delay(POLL_MS);
  }
}

async function runState({ monitor }: Incoming): Promise<string> {
  return text(fields(await monitor.execute('query-status')).status);
}

function failed(why: string): CheckpointError {
  return new CheckpointError('RESTORE_FAILED', why);
}

function fields(reply: Json): Readonly<Record<string, Json | undefined>> {
  return typeof reply === 'object' && reply !== null && !Array.isArray(reply)
    ? (reply as Record<string, Json>)
    : {};
}

function text(value: Json | undefined): string {
  return typeof value === 'string' ? value : 'unknown';
}
