import * as jest from '@jest/globals';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { attachKvm } from '../../adapters/kvm/attach.js';
import { describeVm, type VmAbilities } from '../contract/vm.js';
import { LabMachine } from './machine.js';
import type { QemuVersion } from './support/lab-files.js';

const ABILITIES: VmAbilities = {
  trackerKind: 'pagemap-scan',
  unusableTrackers: [],
  // No agent in this guest, and no channel to one.
  freeze: 'VM_UNSUPPORTED',
  foreignPause: 'kept',
  snapshotModes: ['internal', 'external'],
  alwaysDirtyPages: 0,
  hypervisorPages: 0,
};

function describeKvm(qemu: QemuVersion): void {
  describeVm(jest, `QEMU ${qemu}`, ABILITIES, async () => {
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
