import { mkdirSync } from 'node:fs';
import { join } from 'node:path';

import * as jest from '@jest/globals';

import { attachDomain } from '../../adapters/libvirt/libvirt-vm.js';
import { describeVm, type VmAbilities } from '../contract/vm.js';
import { LabDomain, whyNoLibvirt } from './libvirt-domain.js';
import type { QemuVersion } from './support/lab-files.js';

const ABILITIES: VmAbilities = {
  trackerKind: 'pagemap-scan',
  unusableTrackers: [],
  // The domain has a channel to an agent, and in this guest nobody answers at it.
  freeze: 'GUEST_AGENT',
  foreignPause: 'kept',
  snapshotModes: ['internal', 'external'],
  alwaysDirtyPages: 0,
  hypervisorPages: 0,
};

function describeLibvirt(qemu: QemuVersion): void {
  describeVm(jest, `a domain of libvirt, QEMU ${qemu}`, ABILITIES, async () => {
    const domain = await LabDomain.define('cairn-contract', { qemu, withAgent: true });
    const runtimeDir = join(domain.dir, 'runtime');
    mkdirSync(runtimeDir, { mode: 0o700 });
    const machine = await domain.start();
    await machine.guest('lab memory 16');
    await machine.guest('lab disk');
    return {
      attach: () => attachDomain(domain.address, { runtimeDir }),
      operator: () =>
        Promise.resolve({
          pause: () => domain.virsh('suspend', domain.name),
          resume: () => domain.virsh('resume', domain.name),
        }),
      disturb: () => machine.waitForProgress(),
      destroy: () => domain.remove(),
    };
  });
}

const problem = whyNoLibvirt();
if (problem === '') {
  describeLibvirt('7.2');
  describeLibvirt('10.0');
} else jest.it.skip(`libvirt is not to be had: ${problem}`, () => undefined);
