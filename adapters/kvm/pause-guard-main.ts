/**
 * The pause guard: a process of its own that outlives a Cairn killed in the pause and resumes the VM.
 *
 *     argv    QMP socket path, process id of QEMU, its start time
 *     stdin   "paused\n" before `stop`, "running\n" after `cont`; end of file when Cairn is gone
 *     stdout  "ready\n" at the start, "ok\n" for each "paused"
 *
 * On end of file while paused it connects to the socket (free again, its only client is dead) and sends `cont`, until
 * the VM runs or has ended. It never touches a VM that it was not told of: process id and start time must agree.
 */

import { setTimeout as sleep } from 'node:timers/promises';

import { isCheckpointError } from '../../src/errors.js';
import { asObject } from './qmp-json.js';
import { peerPid, qemuProcess } from './peer-process.js';
import { QmpClient } from './qmp-client.js';

const RETRY_MS = 100;
/** Longer than any start of another client that may take the socket first: it then finds the pause marker itself. */
const GIVE_UP_MS = 30_000;

const [path = '', pid = '', startTime = ''] = process.argv.slice(2);
let isPaused = false;
let unread = '';

process.stdin.setEncoding('latin1');
process.stdin.on('data', (text: string) => {
  unread += text;
  for (let end = unread.indexOf('\n'); end >= 0; end = unread.indexOf('\n')) {
    isPaused = unread.slice(0, end) === 'paused';
    unread = unread.slice(end + 1);
    if (isPaused) process.stdout.write('ok\n');
  }
});
// Signals meant for Cairn's process group must not take the guard along.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined);
// The reader of these lines may be the process whose end this one is waiting for.
process.stdout.on('error', () => undefined);
process.stdin.once('end', () => void finish());
process.stdin.once('error', () => void finish());
process.stdout.write('ready\n');

async function finish(): Promise<void> {
  const until = Date.now() + GIVE_UP_MS;
  while (isPaused && Date.now() < until) {
    if (await resumeOnce()) break;
    await sleep(RETRY_MS);
  }
  process.exit(0);
}

/** @returns true when there is nothing more to do */
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
