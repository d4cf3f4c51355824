/**
 * A Cairn that a test kills in the middle of a pause. Arguments: address of the VM, runtime folder.
 * Prints "paused GUARD_PID" once the VM stands still, and then does nothing for ever.
 */

import { readdirSync, readFileSync } from 'node:fs';

import { attachKvm } from '../../adapters/kvm/attach.js';

const [address = '', runtimeDir = ''] = process.argv.slice(2);
const vm = await attachKvm(address, { runtimeDir });
await vm.runState.pause();
process.stdout.write(`paused ${guardPid()}\n`);
setInterval(() => undefined, 1000);

function guardPid(): number {
  for (const name of readdirSync('/proc')) {
    try {
      const status = readFileSync(`/proc/${name}/status`, 'latin1');
      const command = readFileSync(`/proc/${name}/cmdline`, 'latin1');
      if (status.includes(`PPid:\t${process.pid}\n`) && command.includes('pause-guard-main'))
        return Number(name);
    } catch {
      // Not a process, or gone.
    }
  }
  return 0;
}
