/**
 * Getting a VM out of a migration to Cairn that is not going to be finished: cancel it, have the VM run if
 * the migration is what stopped it, put the operator's settings back. Used by the Cairn that fails, by its
 * guard, and by the next Cairn.
 */

import { setTimeout as sleep } from 'node:timers/promises';

import { CheckpointError, isCheckpointError } from '../../../../src/errors.js';
import { isMigrating } from '../../inspect/hazards.js';
import type { Monitor } from '../../../qemu/monitor.js';
import { asObject, asText } from '../../../qemu/qmp-json.js';
import { setSettings, type MigrationSettings } from './settings.js';

const POLL_MS = 2;
/** A cancelled migration ends as soon as its thread has noticed; a socket that is shut down wakes it. */
const END_LIMIT_MS = 20_000;

/** Cancels what is under way, and returns when QEMU has left the migration. @throws QMP_TIMEOUT, VM_GONE */
export async function endMigration(monitor: Monitor): Promise<void> {
  if (isMigrating(await migrationStatus(monitor))) await monitor.execute('migrate_cancel');
  await leftMigration(monitor);
}

/**
 * Waits until the run state is not that of a migration in its last phase, in which `cont` is refused. QEMU
 * announces the end of a migration a moment before it gets there.
 * @throws QMP_TIMEOUT, VM_GONE
 */
export async function leftMigration(monitor: Monitor): Promise<void> {
  const until = Date.now() + END_LIMIT_MS;
  for (;;) {
    const [status, migration] = await Promise.all([runStatus(monitor), migrationStatus(monitor)]);
    if (status !== 'finish-migrate' && !isMigrating(migration)) return;
    if (Date.now() > until) {
      throw new CheckpointError('QMP_TIMEOUT', `the migration does not end (${migration}, VM ${status})`, {
        hint: 'look at it with `info migrate` in the QEMU monitor',
      });
    }
    await sleep(POLL_MS);
  }
}

/**
 * The way out when nobody knows how far it got. A VM in plain `paused` was not stopped by the migration and
 * is left to whoever did.
 * @throws QMP_COMMAND, QMP_TIMEOUT, VM_GONE
 */
export async function abandonMigration(monitor: Monitor, putBack: MigrationSettings): Promise<void> {
  await endMigration(monitor);
  if ((await runStatus(monitor)) === 'postmigrate') await monitor.execute('cont');
  await setSettings(monitor, putBack);
}

export async function migrationStatus(monitor: Monitor): Promise<string> {
  return asText(asObject(await monitor.execute('query-migrate')).status);
}

async function runStatus(monitor: Monitor): Promise<string> {
  return asText(asObject(await monitor.execute('query-status')).status);
}

/** True for the reply of a QEMU that has not left the last phase of a migration. */
export function isNotFinalized(error: unknown): boolean {
  return isCheckpointError(error) && error.message.includes('not finalized');
}
