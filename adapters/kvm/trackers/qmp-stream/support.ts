/** Whether QEMU can stream this VM to Cairn, found out without starting anything. */

import { isCheckpointError } from '../../../../src/errors.js';
import type { TrackerReport } from '../../../../src/hypervisor/dirty-tracker.js';
import type { Json, JsonObject } from '../../../../src/types.js';
import { findBlockers } from '../../inspect/blockers.js';
import { listAddedDevices } from '../../../qemu/added-devices.js';
import { blockedText, remedyFor } from '../../../qemu/migration-blockers.js';
import type { Monitor } from '../../../qemu/monitor.js';
import { asArray, asNumber, asObject, asText } from '../../../qemu/qmp-json.js';
import { availableMemoryBytes, stagingFolder } from './staging.js';

export const QMP_STREAM_KIND = 'qmp-stream';

/**
 * The kernel's vhost, which QEMU asks for its dirty pages during a migration. And what a balloon has taken
 * out of a file: every stream reads it anew. Not among them: other processes that have mapped guest memory.
 * QEMU asks those of vhost-user as well, but nobody outside can tell them from one that QEMU knows nothing
 * of.
 */
const IMMUNE_TO = ['VHOST_KERNEL', 'BALLOON_ON_FILE'];

const MIB = 1 << 20;

export interface StreamFacts {
  /** Used memory of the guest. */
  readonly memoryBytes: number;
  /** Whether it can be found out who else has mapped the guest's memory, which is then a hazard of the VM. */
  readonly seesSharers: boolean;
}

export async function qmpStreamReport(
  monitor: Monitor,
  { memoryBytes, seesSharers }: StreamFacts,
): Promise<TrackerReport> {
  const blockers = await findBlockers(monitor);
  const refused = (reason: string, remedy: string): TrackerReport => ({
    kind: QMP_STREAM_KIND,
    usable: false,
    reason,
    remedy,
  });
  if (blockers.length > 0) return refused(blockedText(blockers), remedyFor(blockers));
  const file = seesSharers ? undefined : await sharedFile(monitor);
  if (file !== undefined) {
    return refused(
      `guest memory lies in a file that other processes may have mapped (${file}), and this user may not look`,
      'run as root, or start the VM with share=off or with memory-backend-memfd',
    );
  }
  const mustStop = await losesWrites(monitor);
  const folder = stagingFolder();
  if (folder === undefined && availableMemoryBytes() < memoryBytes) {
    return refused(
      `the host has no ${Math.ceil(memoryBytes / MIB)} MiB of memory left for a copy of the guest's`,
      'name a folder for the copy with CAIRN_STREAM_DIR',
    );
  }
  return {
    kind: QMP_STREAM_KIND,
    usable: true,
    reason:
      `a live migration to Cairn, without access to QEMU's process: each checkpoint moves all ` +
      `${Math.ceil(memoryBytes / MIB)} MiB and keeps a copy in ${folder ?? 'memory'}; the VM must be running` +
      (mustStop ? ', and is stopped all the while: this QEMU emulates its CPU and misses writes of it' : ''),
    immuneTo: IMMUNE_TO,
  };
}

/**
 * An emulated CPU (TCG) of a QEMU before 9.0: its stores may pass by the dirty log of a migration, so that
 * QEMU's own migrations lose pages. Seen on 7.2.22, not on 10.0.2; under KVM the log is the kernel's. Such a
 * VM has to be stopped first.
 */
export async function losesWrites(monitor: Monitor): Promise<boolean> {
  const [kvm, version] = await Promise.all([monitor.execute('query-kvm'), monitor.execute('query-version')]);
  return asObject(kvm).enabled !== true && asNumber(asObject(asObject(version).qemu).major) < 9;
}

/** A balloon through which the guest names free pages: QEMU leaves those out of a migration. */
export async function hasFreePageHints(monitor: Monitor): Promise<boolean> {
  for (const { path, type } of await listAddedDevices(monitor)) {
    if (!type.includes('virtio-balloon')) continue;
    if ((await ask(monitor, 'qom-get', { path, property: 'free-page-hint' })) === true) return true;
  }
  return false;
}

/** A memory backend in a file that others can open and write to. */
async function sharedFile(monitor: Monitor): Promise<string | undefined> {
  const [objects, backends] = await Promise.all([
    ask(monitor, 'qom-list', { path: '/objects' }),
    monitor.execute('query-memdev'),
  ]);
  const inFiles = new Set(
    asArray(objects)
      .filter(({ type }) => asText(type) === 'child<memory-backend-file>')
      .map(({ name }) => asText(name)),
  );
  const shared = asArray(backends).find(({ id, share }) => share === true && inFiles.has(asText(id)));
  return shared === undefined ? undefined : asText(shared.id);
}

/** Null for what this machine does not have. */
async function ask(monitor: Monitor, command: string, args: JsonObject): Promise<Json> {
  try {
    return await monitor.execute(command, args);
  } catch (error) {
    if (isCheckpointError(error, 'QMP_COMMAND')) return null;
    throw error;
  }
}
