/**
 * The guard of a stream: outlives a Cairn that is killed while QEMU migrates to it. It ends the migration,
 * has the VM run if the migration stopped it, and puts the operator's migration settings back (see
 * `../pause-guard-process.ts`; its marker is that of `stream-marker.ts`).
 *
 *     argv    what all guards get, then the path of the QMP socket and that of the marker
 *
 * It shares the socket with the pause guard: whoever comes second finds the work done or does the rest.
 */

import type { ProcessIdentity } from '../../../../src/host/process-identity.js';
import { runPauseGuard } from '../../../guard/pause-guard-process.js';
import { peerPid } from '../../../qemu/peer-process.js';
import { QmpClient } from '../../../qemu/qmp-client.js';
import { finishStream } from './stream-marker.js';

const RETRY_MS = 50;

runPauseGuard({ resumeOnce: finishOnce, retryMs: RETRY_MS });

async function finishOnce(
  qemu: ProcessIdentity,
  [path = '', markerPath = '']: readonly string[],
  isLeft: () => Promise<boolean>,
): Promise<boolean> {
  const client = await QmpClient.connect(path, { greetingTimeoutMs: 1000, commandTimeoutMs: 5000 });
  try {
    if (peerPid(client.descriptor) !== qemu.pid) return false;
    if (await isLeft()) await finishStream(markerPath, client);
    return true;
  } finally {
    await client.close();
  }
}
