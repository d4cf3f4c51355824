/** Which machine is which, where no UUID tells. */

import { describe, expect, it } from '@jest/globals';

import { differencesBetween } from '../../adapters/kvm/inspect/same-machine.js';
import { processStartTimeSync } from '../../src/host/process-identity.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import type { RecordedVm } from '../../src/hypervisor/vm.js';

const GONE = '999999999:1';

function vm(
  args: readonly string[],
  {
    instance = GONE,
    uuid = '',
    memoryMib = 256,
  }: { instance?: string; uuid?: string; memoryMib?: number } = {},
): RecordedVm {
  return {
    identity: { hypervisor: 'kvm', name: 'web', uuid, machineType: 'q35', instance },
    machine: { argv: ['qemu', ...args], cwd: '/srv' },
    layout: layOut([
      { id: 'pc.ram', sizeBytes: memoryMib << 20 },
      { id: 'pc.bios', sizeBytes: instance === GONE ? 262_144 : 131_072 },
    ]),
  };
}

const NOW = { instance: '4711:2' };
const nic = (mac: string): readonly string[] => ['-device', `virtio-net-pci,netdev=n,mac=${mac}`];
const disk = (path: string): readonly string[] => ['-drive', `file=${path},format=qcow2`];

describe('a VM without a UUID', () => {
  it.each([
    ['without anything of its own', [], []],
    ['with the same disk', disk('web.qcow2'), disk('web.qcow2')],
    ['with the same disk in another folder', disk('/old/web.qcow2'), disk('/new/web.qcow2')],
    ['on an overlay of its disk', disk('web.qcow2'), disk('/srv/web.qcow2.cairn-restore-0a1b2c3d.qcow2')],
    [
      'on another overlay',
      disk('web.cairn-0a1b2c3d4e5f6a7b.qcow2'),
      disk('web.cairn-ffffffffffffffff.qcow2'),
    ],
    ['with one disk more', disk('web.qcow2'), [...disk('web.qcow2'), ...disk('data.qcow2')]],
    [
      'with its MAC address and another disk',
      [...nic('52:54:00:AA:00:01'), ...disk('a')],
      [...nic('52:54:00:aa:00:01'), ...disk('b')],
    ],
  ])('is the same %s', async (_, before, now) => {
    expect(await differencesBetween(vm(before), vm(now, NOW))).toEqual([]);
  });

  it.each([
    ['another MAC address', nic('52:54:00:00:00:01'), nic('52:54:00:00:00:02')],
    ['no MAC address any more', nic('52:54:00:00:00:01'), []],
    ['none of its disks', disk('web.qcow2'), disk('mail.qcow2')],
    ['no disk any more', disk('web.qcow2'), []],
  ])('is another one with %s', async (_, before, now) => {
    expect(await differencesBetween(vm(before), vm(now, NOW))).toHaveLength(1);
  });

  it('is another one with memory of another size', async () => {
    expect(await differencesBetween(vm([]), vm([], { ...NOW, memoryMib: 128 }))).toEqual([
      'memory pc.ram of 256 MiB, not pc.ram of 128 MiB',
    ]);
  });

  it('is another one while the VM of the checkpoint runs', async () => {
    const alive = { instance: `${process.pid}:${processStartTimeSync(process.pid)}` };
    expect(await differencesBetween(vm([], alive), vm([], NOW))).toEqual([
      `the VM of its newest checkpoint runs as process ${process.pid}`,
    ]);
    expect(await differencesBetween(vm([], alive), vm(disk('grown'), alive))).toEqual([]);
  });
});

it('a UUID is enough', async () => {
  const before = vm(disk('a'), { uuid: 'u' });
  expect(await differencesBetween(before, vm(disk('b'), { ...NOW, uuid: 'u', memoryMib: 512 }))).toEqual([]);
});
