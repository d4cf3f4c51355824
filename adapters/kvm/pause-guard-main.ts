/**
 * The pause guard of a QEMU that is reached by its QMP socket (see `pause-guard-process.ts`).
 *
 *     argv    what all guards get, then the path of the socket
 *
 * The socket is free again when Cairn is gone, whose connection was the one that it served.
 */

import { runPauseGuard, type GuardedQemu } from './pause-guard-process.js';
import { asObject } from './qmp-json.js';
import { peerPid } from './peer-process.js';
import { QmpClient } from './qmp-client.js';

const RETRY_MS = 100;

runPauseGuard({ resumeOnce, retryMs: RETRY_MS });

async function resumeOnce(
  qemu: GuardedQemu,
  [path = '']: readonly string[],
  isLeft: () => Promise<boolean>,
): Promise<boolean> {
  const client = await QmpClient.connect(path, { greetingTimeoutMs: 1000, commandTimeoutMs: 5000 });
  try {
    // Another QEMU may have taken the path over. Ours may still have a socket by which the next Cairn comes.
    if (peerPid(client.descriptor) !== qemu.pid) return false;
    if (await isRunning(client)) return true;
    if (!(await isLeft())) return true;
    await client.execute('cont');
    return await isRunning(client);
  } finally {
    await client.close();
  }
}

async function isRunning(client: QmpClient): Promise<boolean> {
  return asObject(await client.execute('query-status')).running === true;
}
