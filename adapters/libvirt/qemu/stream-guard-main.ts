/**
 * The guard of a stream of a domain's memory (see `adapters/kvm/trackers/qmp-stream/stream-guard-main.ts`),
 * by way of libvirt.
 *
 *     argv    what all guards get, then the URI of libvirt, the UUID and the path of the marker
 */

import type { ProcessIdentity } from '../../../src/host/process-identity.js';
import { runPauseGuard } from '../../guard/pause-guard-process.js';
import { finishStream } from '../../kvm/trackers/qmp-stream/stream-marker.js';
import { LibvirtConnection } from '../native/connection.js';
import { LibvirtDomain } from '../domain.js';
import { LibvirtMonitor } from './monitor.js';

const RETRY_MS = 200;

runPauseGuard({ resumeOnce: finishOnce, retryMs: RETRY_MS });

async function finishOnce(
  _qemu: ProcessIdentity,
  [uri = '', uuid = '', markerPath = '']: readonly string[],
  isLeft: () => Promise<boolean>,
): Promise<boolean> {
  const connection = await LibvirtConnection.open(uri);
  try {
    const monitor = new LibvirtMonitor(await LibvirtDomain.find(connection, uuid));
    if (await isLeft()) await finishStream(markerPath, monitor);
    return true;
  } finally {
    await connection.close();
  }
}
