/** What a restore of a QEMU would do to this host, before anything is done. */

import type { CheckpointSource, RestorePlan } from '../../../src/hypervisor/restore.js';
import { formatCommandLine } from '../../disks/qcow2/command-line.js';
import type { KvmRestoreRequest } from './options.js';
import { planStart } from './start.js';

/** @throws what a restore throws for a command line that cannot be started again */
export async function planRestore(
  source: CheckpointSource,
  request: KvmRestoreRequest,
): Promise<RestorePlan> {
  const disks = rolledBack(source, request);
  // A QEMU that waits was started by somebody else.
  if (request.target !== undefined) return { commands: [], details: [], disks };
  const { program, options, env, cwd, recordedRights } = await planStart(source.machine, request);
  const user = recordedRights?.users[1];
  return {
    commands: [[program, ...formatCommandLine(options)]],
    details: [
      `in ${cwd}, as user ${request.asRoot === true || user === undefined ? 'of the caller' : user}`,
      ...Object.entries(env).map(([name, value]) => `${name}=${value}`),
    ],
    disks,
  };
}

export function rolledBack(
  { disks }: Pick<CheckpointSource, 'disks'>,
  { keepDisks }: Pick<KvmRestoreRequest, 'keepDisks'>,
): readonly string[] {
  return keepDisks ? [] : disks.map(({ diskId, driver, path }) => `${diskId}: ${driver} ${path}`);
}
