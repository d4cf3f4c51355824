/**
 * The pause guard of a QEMU that is reached by its QMP socket (see `pause-guard-process.ts`).
 *
 *     argv    QMP socket path, process id of QEMU, its start time
 *
 * On end of file while paused it connects to the socket (free again, its only client is dead) and sends `cont`, until
 * the VM runs or has ended. It never touches a VM that it was not told of: process id and start time must agree.
 */

import { isCheckpointError } from '../../src/errors.js';
import { runPauseGuard } from './pause-guard-process.js';
import { asObject } from './qmp-json.js';
import { peerPid, qemuProcess } from './peer-process.js';
import { QmpClient } from './qmp-client.js';

const RETRY_MS = 100;
/** Longer than any start of another client that may take the socket first: it then finds the pause marker itself. */
const GIVE_UP_MS = 30_000;

const [path = '', pid = '', startTime = ''] = process.argv.slice(2);

runPauseGuard({ resumeOnce, retryMs: RETRY_MS, giveUpMs: GIVE_UP_MS });

async function resumeOnce(): Promise<boolean> {
  try {
    const client = await QmpClient.connect(path, { greetingTimeoutMs: 1000, commandTimeoutMs: 5000 });
    try {
      const found = await qemuProcess(peerPid(client.descriptor), path);
      if (String(found.pid) !== pid || found.startTime !== startTime) return true;
      await client.execute('cont');
      return asObject(await client.execute('query-status')).running === true;
    } finally {
      await client.close();
    }
  } catch (error) {
    // A socket that is gone does not come back for this QEMU; a busy one becomes free.
    return isCheckpointError(error, 'VM_UNREACHABLE');
  }
}
