/** How the rules of this adapter say that a guest is not checkpointed. */

import type { VmHazard } from '../../../src/hypervisor/vm.js';

/** @param code stable: operators and scripts go by it */
export function refuse(code: string, text: string): VmHazard {
  return { code, text, effect: 'refuse' };
}
