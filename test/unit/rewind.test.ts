/** What a rewind refuses, and which checkpoints it takes for known. The rest needs a QEMU: test/lab/rewind.test.ts. */

import { describe, expect, it } from '@jest/globals';

import { rolledDisks } from '../../adapters/kvm/rewind/rolled-disks.js';
import type { LentVm } from '../../src/checkpoint/session.js';
import type { Manifest } from '../../src/format/manifest.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import type { Vm } from '../../src/hypervisor/vm.js';
import { peekOf, refuseOther, rewindOf } from '../../src/rewind/refusals.js';
import type { Json } from '../../src/types.js';

const layout = layOut([{ id: 'pc.ram', sizeBytes: 1 << 20 }]);
const identity = { hypervisor: 'kvm', name: 'web1', uuid: '', machineType: 'pc', instance: '7:8' };
const manifest = {
  ...{ id: '00aa', vmName: 'web1', identity, layout, deviceState: {} },
} as unknown as Manifest;
const lent = (change: object = {}): LentVm =>
  ({
    ...{ vm: { address: 'qmp:/a', identity }, vmName: 'web1', layout, trackerReason: '' },
    ...{ tracker: { kind: 'compare' } },
    ...change,
  }) as unknown as LentVm;

describe('a rewind is refused', () => {
  it('of a VM that cannot be put back in its process', () => {
    expect(() => rewindOf({ address: 'xen:web1' } as Vm)).toThrow(
      expect.objectContaining({ code: 'VM_UNSUPPORTED' }),
    );
  });

  it('with a tracker that cannot be looked at, and says why it is in use', () => {
    const look = (): unknown => peekOf(lent({ trackerReason: 'pagemap-scan: an old kernel' }));
    expect(look).toThrow(expect.objectContaining({ code: 'TRACKER_UNAVAILABLE' }));
    expect(look).toThrow('an old kernel');
  });

  it.each<[string, string, Partial<Manifest>]>([
    ['another chain', 'CHAIN_WRONG_VM', { vmName: 'web2' }],
    ['another start of the VM', 'OTHER_START', { identity: { ...identity, instance: '7:9' } }],
    ['other memory', 'MEMORY_CHANGED', { layout: layOut([{ id: 'pc.ram', sizeBytes: 2 << 20 }]) }],
    ['no device state', 'NO_DEVICE_STATE', { deviceState: null }],
    ['frozen file systems', 'FROZEN_GUEST', { frozen: { fileSystemCount: 1 } }],
  ])('to a checkpoint with %s', (_, reason, change) => {
    refuseOther(lent(), manifest);
    try {
      refuseOther(lent(), { ...manifest, ...change });
      throw new Error('it was not refused');
    } catch (error) {
      const { code, detail } = error as { code: string; detail: { reason?: string } };
      expect([code, detail.reason]).toContain(reason);
    }
  });
});

describe('disks that go back', () => {
  const disk = (more: object = {}, device = 'disk0'): Json => ({
    device,
    inserted: {
      ...{ drv: 'qcow2', 'node-name': '#block1', ro: false },
      image: { snapshots: [{ name: 'cairn-00aa' }] },
      ...more,
    },
  });
  const snapshot = (driver = 'internal', diskId = 'disk0') => ({
    ...{ diskId, driver, path: '/a.qcow2' },
    data: { snapshotName: 'cairn-00aa', overlayPath: '' },
  });

  it('are named by their nodes, with the one name of their snapshots', () => {
    expect(rolledDisks([disk()], [snapshot()], false)).toEqual({
      ...{ nodes: ['#block1'], tag: 'cairn-00aa' },
      texts: ['disk0: internal /a.qcow2'],
    });
  });

  it('are none when they are to stay, or cannot be written to', () => {
    const none = { nodes: [], tag: undefined, texts: [] };
    expect(rolledDisks([disk()], [snapshot()], true)).toEqual(none);
    expect(rolledDisks([disk({ ro: true })], [], false)).toEqual(none);
    expect(rolledDisks([{ device: 'cd', removable: true }], [], false)).toEqual(none);
  });

  it.each<[string, string, Json, readonly ReturnType<typeof snapshot>[]]>([
    ['have no snapshot', 'DISK_NOT_COVERED', [disk()], []],
    ['have one outside of the image', 'DISK_NOT_COVERED', [disk()], [snapshot('external')]],
    ['lost it', 'DISK_SNAPSHOT_GONE', [disk({ image: {} })], [snapshot()]],
    ['have a dirty bitmap', 'DISK_BITMAPS', [disk({ 'dirty-bitmaps': [{ name: 'b' }] })], [snapshot()]],
    ['are gone', 'DISK_GONE', [], [snapshot()]],
  ])('are refused when they %s', (_, reason, reply, snapshots) => {
    try {
      rolledDisks(reply, snapshots, false);
      throw new Error('it was not refused');
    } catch (error) {
      const { code, detail } = error as { code: string; detail: { reason?: string } };
      expect([code, detail.reason]).toContain(reason);
    }
  });
});
