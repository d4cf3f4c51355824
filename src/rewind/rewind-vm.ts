/** Rewinds the VM of an address. */

import { openSession, type OpenSessionOptions } from '../checkpoint/open-session.js';
import { chainNameOf } from '../checkpoint/trust/chain-name.js';
import type { Manifest } from '../format/manifest.js';
import type { HypervisorRegistry } from '../hypervisor/registry.js';
import { rewind, type RewindOptions, type RewindResult } from './rewind.js';

export interface RewindVmOptions extends RewindOptions {
  /** How the session is opened that is rewound, and that takes the checkpoint of `undo`. */
  readonly session: Omit<OpenSessionOptions, 'signal' | 'onNotice' | 'check'>;
}

/**
 * @param address such as qmp:/run/web1.qmp
 * @param checkpoint id, the start of one, or latest, in the VM's chain
 * @throws CHECKPOINT_NOT_FOUND, CHECKPOINT_AMBIGUOUS with nothing made; see `openSession` and `rewind`
 */
export async function rewindVm(
  hypervisors: HypervisorRegistry,
  address: string,
  checkpoint: string,
  { session: settings, ...options }: RewindVmOptions,
): Promise<RewindResult> {
  const { signal, onNotice } = options;
  let manifest: Manifest | undefined;
  const session = await openSession(hypervisors, address, {
    ...settings,
    ...{ signal, onNotice },
    check: async (vm) => {
      const chain = settings.name ?? chainNameOf(vm);
      manifest = await settings.repository.find(checkpoint, chain, { signal });
    },
  });
  try {
    return await rewind(session, manifest!, options);
  } finally {
    await session.close();
  }
}
