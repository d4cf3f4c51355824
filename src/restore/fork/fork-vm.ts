/** Forks a running VM: a checkpoint of it first, as any other, and that is forked. The VM goes on. */

import { openSession, type OpenSessionOptions } from '../../checkpoint/open-session.js';
import { chainNameOf } from '../../checkpoint/trust/chain-name.js';
import type { CheckpointSummary } from '../../checkpoint/summary.js';
import type { HypervisorRegistry } from '../../hypervisor/registry.js';
import { childNames } from './child-names.js';
import { forkCheckpoint, type ForkOptions, type ForkResult } from './fork.js';

export interface ForkVmOptions extends Omit<ForkOptions, 'repository' | 'hypervisors' | 'manifest' | 'each'> {
  /** How the session is opened that takes the checkpoint. */
  readonly session: Omit<OpenSessionOptions, 'signal' | 'check'>;
  /** As of `ForkOptions`, for a checkpoint that is not there yet. */
  readonly eachOf?: ((checkpointId: string) => ForkOptions['each']) | undefined;
}

export interface ForkVmResult extends ForkResult {
  readonly checkpoint: CheckpointSummary;
}

/**
 * @param address such as qmp:/run/web1.qmp
 * @throws as `openSession`, `CheckpointSession.checkpoint` and `forkCheckpoint`; the checkpoint stays when
 *   the fork fails
 */
export async function forkVm(
  hypervisors: HypervisorRegistry,
  address: string,
  { session: settings, eachOf, ...options }: ForkVmOptions,
): Promise<ForkVmResult> {
  const { signal } = options;
  const { repository } = settings;
  const session = await openSession(hypervisors, address, {
    ...{ ...settings, signal },
    check: (vm) => {
      // Names that cannot be are told before anything is taken.
      childNames(options.prefix ?? settings.name ?? chainNameOf(vm), options.count);
      return Promise.resolve();
    },
  });
  let checkpoint: CheckpointSummary;
  try {
    checkpoint = await session.checkpoint();
  } finally {
    await session.close();
  }
  const manifest = await repository.find(checkpoint.checkpointId, undefined, { signal });
  const each = eachOf?.(manifest.id);
  return { ...(await forkCheckpoint({ ...options, repository, hypervisors, manifest, each })), checkpoint };
}
