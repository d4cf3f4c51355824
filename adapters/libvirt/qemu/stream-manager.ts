/**
 * A stream of a domain's memory (`adapters/kvm/qmp-stream`), beside libvirt, which has not begun the
 * migration and has no job for it: it follows QEMU's STOP and RESUME, and drops the events of a migration
 * that is none of its own.
 */

import type { StreamManager } from '../../kvm/trackers/qmp-stream/stream-manager.js';
import type { LibvirtDomain } from '../domain.js';
import { guardOf } from './pauses.js';

export function streamManager(
  domain: LibvirtDomain,
  waitJobMs: number | undefined,
  signal: AbortSignal | undefined,
): StreamManager {
  return {
    ready: () => domain.awaitNoJob(waitJobMs, signal),
    isStoppedByMigration: () => domain.isPausedWithoutReason(),
    guard: (markerPath) => guardOf(domain, './stream-guard-main.js', markerPath),
  };
}
