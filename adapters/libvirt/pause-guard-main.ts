/**
 * The pause guard of a libvirt domain (see `adapters/kvm/pause-guard-process.ts`): resumes it through libvirt.
 *
 *     argv    URI of libvirt, UUID, process id of QEMU, its start time
 *
 * It never touches a domain that was started anew: process id and start time must agree.
 */

import { isSameProcess } from '../../src/checkpoint/process-identity.js';
import { runPauseGuard } from '../kvm/pause-guard-process.js';
import { LibvirtConnection } from './connection.js';
import { LibvirtDomain } from './domain.js';

const RETRY_MS = 200;
/** A daemon that is being restarted or upgraded is back by then. */
const GIVE_UP_MS = 60_000;

const [uri = '', uuid = '', pid = '', startTime = ''] = process.argv.slice(2);

runPauseGuard({ resumeOnce, retryMs: RETRY_MS, giveUpMs: GIVE_UP_MS });

async function resumeOnce(): Promise<boolean> {
  if (!(await isSameProcess(Number(pid), startTime))) return true;
  try {
    const connection = await LibvirtConnection.open(uri);
    try {
      const domain = await LibvirtDomain.find(connection, uuid);
      if ((await domain.state()) === 'paused') await domain.resume();
      return (await domain.state()) === 'running';
    } finally {
      await connection.close();
    }
  } catch {
    return false;
  }
}
