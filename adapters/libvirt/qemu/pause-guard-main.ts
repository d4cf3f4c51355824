/**
 * The pause guard of a libvirt domain (see `adapters/guard/pause-guard-process.ts`): resumes it through
 * libvirt.
 *
 *     argv    what all guards get, then the URI of libvirt and the UUID
 */

import { thawGuest } from '../../kvm/run/guest-agent/guest-agent.js';
import type { ProcessIdentity } from '../../../src/host/process-identity.js';
import { runPauseGuard, type ResumeOutcome } from '../../guard/pause-guard-process.js';
import { LibvirtConnection } from '../native/connection.js';
import { DomainAgent } from './domain-agent.js';
import { LibvirtDomain } from '../domain.js';

const RETRY_MS = 200;

const THAW_LIMIT_MS = 5000;

runPauseGuard({ resumeOnce, thawOnce, retryMs: RETRY_MS });

async function resumeOnce(
  _qemu: ProcessIdentity,
  [uri = '', uuid = '']: readonly string[],
  isLeft: () => Promise<boolean>,
): Promise<ResumeOutcome> {
  const connection = await LibvirtConnection.open(uri);
  try {
    const domain = await LibvirtDomain.find(connection, uuid);
    // libvirt has Cairn's connection, which is not cut: a Cairn that has hung right before may stop it yet.
    if ((await domain.state()) === 'running') return 'ran';
    if (!(await isLeft())) return true;
    if ((await domain.state()) === 'paused') await domain.resume();
    return (await domain.state()) === 'running';
  } finally {
    await connection.close();
  }
}

async function thawOnce([uri = '', uuid = '']: readonly string[]): Promise<boolean> {
  const connection = await LibvirtConnection.open(uri);
  try {
    await thawGuest(new DomainAgent(await LibvirtDomain.find(connection, uuid)), THAW_LIMIT_MS);
    return true;
  } finally {
    await connection.close();
  }
}
