/**
 * The pause guard of a QEMU that is reached by its QMP socket (see `pause-guard-process.ts`).
 *
 *     argv    what all guards get, then the path of the socket, then that of the guest's agent, or nothing
 *
 * The socket is free again when Cairn is gone, whose connection was the one that it served.
 */

import { thawGuest } from './guest-agent/guest-agent.js';
import { SocketAgent } from './guest-agent/socket-agent.js';
import type { ProcessIdentity } from '../../../src/host/process-identity.js';
import { runPauseGuard } from '../../guard/pause-guard-process.js';
import { asObject } from '../../qemu/qmp-json.js';
import { peerPid } from '../../qemu/peer-process.js';
import { QmpClient } from '../../qemu/qmp-client.js';

const RETRY_MS = 100;

const THAW_LIMIT_MS = 5000;

runPauseGuard({ resumeOnce, thawOnce, retryMs: RETRY_MS });

async function resumeOnce(
  qemu: ProcessIdentity,
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

async function thawOnce([, agentPath = '']: readonly string[]): Promise<boolean> {
  const agent = new SocketAgent(agentPath);
  try {
    await thawGuest(agent, THAW_LIMIT_MS);
    return true;
  } finally {
    agent.close();
  }
}

async function isRunning(client: QmpClient): Promise<boolean> {
  return asObject(await client.execute('query-status')).running === true;
}
