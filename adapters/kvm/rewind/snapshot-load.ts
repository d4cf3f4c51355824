/**
 * The job `snapshot-load`: resets the machine, loads the device state and takes the disks back. Its failure comes
 * after the reset, so the VM must not run then. Events do not come through libvirt, so the job is asked.
 */

import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';

import { CheckpointError } from '../../../src/errors.js';
import type { Monitor } from '../../qemu/monitor.js';
import { asArray, asText } from '../../qemu/qmp-json.js';

const PREFIX = 'cairn-rewind-';
/** QEMU answers when its load is through. Asked again at once a few times, since each wait is in the pause. */
const ASKED_AT_ONCE = 20;
const POLL_MS = 1;
/** A load takes some 10 ms. Disks are written to and flushed, which takes seconds on slow ones. */
const LIMIT_MS = 60_000;

export interface SnapshotLoad {
  readonly tag: string;
  /** Node of the vmstate. */
  readonly vmstate: string;
  /** Nodes of the disks that are taken back. */
  readonly disks: readonly string[];
}

/** Leaves the job to `dismissLeft`. @throws REWIND_FAILED, QMP_TIMEOUT, VM_GONE */
export async function loadSnapshot(monitor: Monitor, { tag, vmstate, disks }: SnapshotLoad): Promise<void> {
  const id = `${PREFIX}${randomBytes(4).toString('hex')}`;
  await monitor.execute('snapshot-load', { 'job-id': id, tag, vmstate, devices: [vmstate, ...disks] });
  const until = Date.now() + LIMIT_MS;
  for (let asked = 1; ; asked++) {
    const job = asArray(await monitor.execute('query-jobs')).find((one) => one.id === id);
    if (job === undefined) throw failed('the job is gone');
    if (job.status === 'concluded') {
      if (job.error !== undefined) throw failed(asText(job.error));
      return;
    }
    if (Date.now() > until) throw failed(`it is still ${asText(job.status)} after ${LIMIT_MS / 1000} s`);
    if (asked > ASKED_AT_ONCE) await sleep(POLL_MS);
  }
}

/** Jobs of rewinds, those of a Cairn that was killed too. They are over, and hold nothing. @throws VM_GONE, QMP_TIMEOUT */
export async function dismissLeft(monitor: Monitor): Promise<void> {
  const ids = asArray(await monitor.execute('query-jobs')).map(({ id }) => asText(id));
  for (const id of ids.filter((one) => one.startsWith(PREFIX))) await monitor.execute('job-dismiss', { id });
}

function failed(why: string): CheckpointError {
  return new CheckpointError('REWIND_FAILED', `QEMU did not load the device state: ${why}`, {
    detail: { why },
  });
}
