import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { attachKvm } from '../../adapters/kvm/attach.js';
import { describeVm } from '../contract/vm.js';
import { LabMachine } from './machine.js';
import type { QemuVersion } from './support/lab-files.js';

function describeKvm(qemu: QemuVersion): void {
  describeVm(`QEMU ${qemu}`, async () => {
    const runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-contract-'));
    const machine = await LabMachine.start({
      name: 'contract',
      qemu,
      smp: 2,
      devices: ['disk', 'net', 'balloon', 'vga'],
    });
    await machine.guest('lab memory 16');
    await machine.guest('lab disk');
    return {
      trackerKind: 'pagemap-scan',
      attach: () => attachKvm(machine.address, { runtimeDir }),
      operator: () =>
        Promise.resolve({
          pause: () => machine.qmp.command('stop'),
          resume: () => machine.qmp.command('cont'),
        }),
      disturb: () => machine.waitForProgress(),
      destroy: async () => {
        await machine.destroy();
        rmSync(runtimeDir, { recursive: true });
      },
    };
  });
}

describeKvm('7.2');
describeKvm('10.0');
