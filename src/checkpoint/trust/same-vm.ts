/** Whether a VM may add to a chain, where its record in the repository does not tell: see `Vm.differencesFrom`. */

import { CheckpointError } from '../../errors.js';
import type { Vm } from '../../hypervisor/vm.js';
import type { Manifest } from '../../format/manifest.js';

/** @throws CHAIN_WRONG_VM, VM_GONE */
export async function refuseAnotherVm(vm: Vm, latest: Manifest | null): Promise<void> {
  if (latest === null) return;
  const differences = (await vm.differencesFrom?.(latest)) ?? [];
  if (differences.length === 0) return;
  throw new CheckpointError(
    'CHAIN_WRONG_VM',
    `the newest checkpoint of "${latest.vmName}" (${latest.id}) is of another VM: ${differences.join('; ')}`,
    {
      hint: 'give this VM a chain of its own with --name, and each VM a UUID (-uuid), which tells VMs apart for good',
      detail: { chain: latest.chain },
    },
  );
}
