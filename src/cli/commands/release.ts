import type { Command } from 'commander';

import { letGo } from '../../checkpoint/let-go.js';
import { defaultRuntimeDir, openRuntimeDir } from '../../host/runtime-dir.js';
import { hypervisors } from '../../index.js';
import { command, run, type SharedOptions } from '../command.js';

export function releaseCommand(): Command {
  return command('release', 'end the tracking that checkpoints leave armed in a running VM', [
    'cairn release qmp:/run/web1.qmp   # before QEMU takes a background snapshot',
  ])
    .argument('<vm>', 'address of the VM')
    .action((address: string, options: SharedOptions) =>
      run(options, async ({ reporter, signal }) => {
        const runtimeDir = await openRuntimeDir(defaultRuntimeDir());
        const vm = await hypervisors().forAddress(address).attach(address, { runtimeDir, signal });
        try {
          const released = await letGo(vm, runtimeDir);
          reporter.summary(
            { vm: address, released },
            released.length === 0
              ? `${address}: nothing is armed`
              : `${address}: ${released.join(', ')} is off; the next checkpoint reads all memory`,
          );
        } finally {
          await vm.close();
        }
        return undefined;
      }),
    );
}
