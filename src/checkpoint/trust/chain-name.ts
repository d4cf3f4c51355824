/** The name of a VM's chain in the repository when the operator gives none. */

import { createHash } from 'node:crypto';

import type { Vm } from '../../hypervisor/vm.js';

/** The VM's name, else its UUID, else something stable made from its address. */
export function chainNameOf(vm: Vm): string {
  if (vm.identity.name !== '') return vm.identity.name;
  if (vm.identity.uuid !== '') return vm.identity.uuid;
  return `vm-${createHash('sha256').update(vm.address).digest('hex').slice(0, 12)}`;
}
