/**
 * What QEMU must not have or do when it is rewound. Each of these either kills it, or makes `snapshot-load` fail behind
 * its reset, when guest memory is the checkpoint's already; so they are found out before.
 */

import type { Json } from '../../../src/types.js';
import { findBlockers } from '../inspect/blockers.js';
import { isMigrating } from '../inspect/hazards.js';
import { runStateOf, stateRefused, statusOf } from '../run/run-states.js';
import { refuseBlocked } from '../../qemu/migration-blockers.js';
import type { Monitor } from '../../qemu/monitor.js';
import { asArray, asObject, asText } from '../../qemu/qmp-json.js';
import { refused } from './refused.js';

/** With `multifd` QEMU dies; with the others it expects them in the stream. */
const CAPABILITIES = ['multifd', 'x-ignore-shared', 'mapped-ram'];

/** @throws REWIND_REFUSED, VM_STATE, VM_UNSUPPORTED, VM_GONE */
export async function refuseUnfit(monitor: Monitor, machineType: string): Promise<void> {
  const [status, capabilities, migration, blockJobs, jobs, type] = await Promise.all([
    monitor.execute('query-status'),
    monitor.execute('query-migrate-capabilities'),
    monitor.execute('query-migrate'),
    monitor.execute('query-block-jobs'),
    monitor.execute('query-jobs'),
    monitor.execute('qom-get', { path: '/machine', property: 'type' }),
  ]);
  refuseState(status);
  const found = asText(type).replace(/-machine$/, '');
  if (found !== machineType)
    throw refused('MACHINE_TYPE', `the VM is a ${found}, the checkpoint one of a ${machineType}`, {
      hint: 'use cairn restore',
    });
  const on = asArray(capabilities)
    .filter(({ state }) => state === true)
    .map(({ capability }) => asText(capability))
    .filter((name) => CAPABILITIES.includes(name));
  if (on.length > 0)
    throw refused('MIGRATION_CAPABILITY', `the migration capabilities ${on.join(', ')} are on`, {
      hint: `turn them off (migrate-set-capabilities): QEMU would not survive, or not load, the device state`,
      detail: { capabilities: on },
    });
  const migrating = asText(asObject(migration).status);
  if (isMigrating(migrating))
    throw refused('MIGRATION_ACTIVE', `a migration of this VM is under way (${migrating})`, {
      hint: 'wait until it is over, or cancel it',
      retryable: true,
    });
  refuseJobs(blockJobs, jobs);
  refuseBlocked(await findBlockers(monitor));
}

function refuseState(status: Json): void {
  const name = statusOf(status);
  if (runStateOf(status) === 'other') throw stateRefused(name);
  if (name === 'prelaunch')
    throw refused('NOT_STARTED', 'the VM has not run since its QEMU was started (-S)', {
      hint: 'let it run (cont), or use cairn restore',
    });
}

function refuseJobs(blockJobs: Json, jobs: Json): void {
  const ids = [
    ...asArray(blockJobs).map(({ type, device }) => `${asText(type)} ${asText(device)}`),
    // Those of disks are listed here as well, once more by their name.
    ...asArray(jobs)
      .filter(({ status }) => status !== 'concluded' && status !== 'null')
      .map(({ type, id }) => `${asText(type)} ${asText(id)}`),
  ];
  if (ids.length === 0) return;
  const names = [...new Set(ids)];
  throw refused('BLOCK_JOB', `jobs are at work in QEMU: ${names.join(', ')}`, {
    hint: 'wait until they are over, or cancel them (block-job-cancel)',
    retryable: true,
    detail: { jobs: names },
  });
}
