/**
 * Getting a connection to a QEMU that has lost its page server: it waits, and listens where it is told to.
 *
 *     QEMU notices the lost connection: postcopy-paused
 *     --exec-oob migrate-recover unix:PATH--> listens at PATH <--connect-- this process
 *     what is there already? <--> a bit for each page;  RESUME <--> taken;  pages as before
 */

import { rm } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import { CheckpointError, describeError, isCheckpointError } from '../../../../src/errors.js';
import type { QmpClient } from '../../../qemu/qmp-client.js';
import { faultStep } from '../../../qemu/postcopy/fault-steps.js';
import { asObject, asText } from '../../../qemu/qmp-json.js';

/** QEMU notices by itself, at the next page that it reads. */
const NOTICE_LIMIT_MS = 30_000;
const RETRY_MS = 20;

/**
 * @returns undefined when QEMU has all of its memory already
 * @throws RESTORE_FAILED when QEMU does not wait for a page server, VM_GONE, QMP_TIMEOUT
 */
export async function connectAgain(
  monitor: QmpClient,
  pid: number,
  qmpPath: string,
): Promise<Socket | undefined> {
  // Where QEMU made the socket of its monitor, it can make another one.
  const path = join(dirname(qmpPath), `.cairn-fill-${pid}-${process.pid}`);
  await rm(path, { force: true });
  try {
    if (!(await recovering(monitor, `unix:${path}`))) return undefined;
    faultStep();
    const socket = await connected(path);
    faultStep();
    return socket;
  } finally {
    await rm(path, { force: true });
  }
}

/** @returns false when there is nothing to recover, because all is there */
async function recovering(monitor: QmpClient, uri: string): Promise<boolean> {
  const untilMs = Date.now() + NOTICE_LIMIT_MS;
  let status = '';
  let isAsking = false;
  for (;;) {
    try {
      await monitor.executeOutOfBand('migrate-recover', { uri });
      return true;
    } catch (error) {
      if (!isCheckpointError(error, 'QMP_COMMAND')) throw error;
      if (status === 'completed') return false;
      if (Date.now() > untilMs) {
        const text = `QEMU takes no other page server: ${describeError(error)}`;
        throw new CheckpointError('RESTORE_FAILED', text, { cause: error });
      }
    }
    // Not waited for: its main loop may be what waits for a page. One question at a time, since a monitor that has
    // several to answer reads no further.
    if (!isAsking) {
      isAsking = true;
      void monitor
        .execute('query-migrate', undefined, { timeoutMs: 2 * NOTICE_LIMIT_MS })
        .then((reply) => (status = asText(asObject(reply).status)))
        .catch(() => undefined)
        .finally(() => (isAsking = false));
    }
    await delay(RETRY_MS);
  }
}

function connected(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.removeAllListeners('error');
      resolve(socket);
    });
    socket.once('error', (cause) =>
      reject(
        new CheckpointError(
          'RESTORE_FAILED',
          `QEMU does not listen for a page server: ${describeError(cause)}`,
          {
            cause,
          },
        ),
      ),
    );
  });
}
