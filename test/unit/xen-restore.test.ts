import { describe, expect, it } from '@jest/globals';

import { disksOf } from '../../adapters/xen/devices/disks.js';
import { disksOfStoppedDomain } from '../../adapters/xen/devices/recorded-disks.js';
import { restoreCheckpoint } from '../../adapters/xen/restore.js';
import type { XenRestoreRequest } from '../../adapters/xen/restore-options.js';
import { xenHypervisor } from '../../adapters/xen/xen-hypervisor.js';
import { refuseForeignSettings, type RestoreSettings } from '../../src/hypervisor/restore-options.js';
import type { CheckpointSource, PageChunk } from '../../src/hypervisor/restore.js';
import { hypervisors } from '../../src/index.js';
import type { DiskSnapshot } from '../../src/hypervisor/disks.js';
import { layoutOf } from '../../adapters/xen/domain/physmap.js';
import { encodeDeviceState } from '../../adapters/xen/stream/device-state.js';
import { lastAfter } from '../../adapters/xen/stream/last-after.js';

// eslint-disable-next-line @typescript-eslint/require-await -- a checkpoint without pages
async function* noPages(): AsyncGenerator<PageChunk> {
  yield* [];
}

const source: CheckpointSource = {
  checkpointId: 'abc',
  hypervisor: 'xen',
  machine: { config: { c_info: { name: 'web1' }, disks: [{ vdev: 'xvda' }] }, xenMajor: 4, xenMinor: 17 },
  machineType: 'xen-pvh',
  layout: layoutOf([{ firstFrame: 0, frameCount: 512 }]),
  disks: [],
  deviceState: () =>
    Promise.resolve(
      encodeDeviceState({ guestType: 2, presentFrames: new Uint32Array(0), before: [], after: [] }),
    ),
  pages: noPages,
  pagesAsStored: noPages,
};

const request: XenRestoreRequest = { paused: false, keepDisks: false };

describe('restoring a Xen domain', () => {
  it.each<readonly [string, RestoreSettings, string]>([
    ['a waiting QEMU', { target: 'unix:/x' }, '--to (an option of kvm, libvirt)'],
    ['another program', { program: '/bin/true' }, '--program (an option of kvm)'],
    ['a QMP socket', { socketPath: '/x' }, '--qmp (an option of kvm, libvirt)'],
    ['arguments of a command line', { setArgs: ['-name=x'] }, '--set-arg (an option of kvm, libvirt)'],
    ['new MAC addresses', { newMacs: true }, '--new-macs (an option of libvirt)'],
    ['a command for the description', { xmlCommand: 'cat' }, '--xml-edit (an option of libvirt)'],
  ])('refuses %s, which means nothing to it, and says whose option it is', (_, settings, text) => {
    expect(() => refuseForeignSettings(xenHypervisor, hypervisors().all, settings)).toThrow(
      expect.objectContaining({ code: 'USAGE', message: expect.stringContaining(text) }),
    );
  });

  it.each<readonly [string, string]>([
    ['that the domain does not have', 'xvdb=/x'],
    ['without a path', 'xvda'],
  ])('refuses a disk %s', async (_, disk) => {
    await expect(restoreCheckpoint(source, { ...request, diskPaths: [disk] })).rejects.toMatchObject({
      code: 'USAGE',
    });
  });

  it('refuses a checkpoint without a configuration', async () => {
    await expect(restoreCheckpoint({ ...source, machine: {} }, request)).rejects.toMatchObject({
      code: 'VM_UNSUPPORTED',
    });
  });

  it('refuses to put images of Ceph back, and to remove their snapshots', async () => {
    const snapshot: DiskSnapshot = {
      diskId: 'xvda',
      path: 'rbd:vms/web',
      driver: 'rbd',
      data: { snapshotName: 'cairn-abc', overlayPath: '' },
    };
    await expect(restoreCheckpoint({ ...source, disks: [snapshot] }, request)).rejects.toMatchObject({
      code: 'VM_UNSUPPORTED',
      message: expect.stringContaining('Ceph RBD'),
    });
    await expect(disksOfStoppedDomain().drop([snapshot])).rejects.toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
    });
    expect(disksOf({ disks: [{ vdev: 'xvda', pdev_path: 'rbd:vms/web:id=u', readwrite: 1 }] })).toMatchObject(
      [{ snapshotModes: [], whyNoSnapshot: expect.stringContaining('Ceph RBD') }],
    );
  });

  it('says what is missing on a host without xl', async () => {
    const path = process.env.PATH;
    process.env.PATH = '/nonexistent';
    const restored = restoreCheckpoint(source, {
      ...request,
      diskPaths: ['xvda=/x'],
      newName: 'w',
    });
    process.env.PATH = path;
    await expect(restored).rejects.toMatchObject({ code: 'VM_UNSUPPORTED' });
  });
});

describe('a step between the pieces of a stream', () => {
  const piecesOf = async (fails: boolean, happened: string[]): Promise<void> => {
    // eslint-disable-next-line @typescript-eslint/require-await -- there is nothing to wait for
    async function* pieces(): AsyncGenerator<Uint8Array> {
      yield Uint8Array.of(1);
      yield Uint8Array.of(2);
      if (fails) throw new Error('damaged');
      yield Uint8Array.of(3);
    }
    const step = (): Promise<void> => {
      happened.push('step');
      return Promise.resolve();
    };
    for await (const piece of lastAfter(pieces(), step)) happened.push(String(piece[0]));
  };

  it('comes after all have been read and before the last is handed on', async () => {
    const happened: string[] = [];
    await piecesOf(false, happened);
    expect(happened).toEqual(['1', '2', 'step', '3']);
  });

  it('does not come when the source breaks off', async () => {
    const happened: string[] = [];
    await expect(piecesOf(true, happened)).rejects.toThrow('damaged');
    expect(happened).toEqual(['1']);
  });
});
