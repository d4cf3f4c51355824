import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { writersOf } from '../../adapters/xen/devices/image-writers.js';
import { DiskDrivers } from '../../adapters/disks/disk-drivers.js';
import { exchangeAt } from '../../adapters/xen/devices/device-model.js';
import { Qcow2Disks } from '../../adapters/xen/devices/qcow2-disks.js';
import { CheckpointError } from '../../src/errors.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';
import type { Json, JsonObject } from '../../src/types.js';
import { FakeMonitor } from '../support/fake-monitor.js';

const disk: VmDisk = {
  id: 'xvda',
  path: '/srv/web.qcow2',
  format: 'qcow2',
  writable: true,
  virtualSizeBytes: 0,
  snapshotModes: [],
};
const raw: VmDisk = { ...disk, id: 'xvdb', path: '/dev/vg/data', format: 'raw' };

function served(path = disk.path, name = '51712-qcow2'): JsonObject[] {
  return [
    {
      device: '',
      inserted: {
        'node-name': name,
        drv: 'qcow2',
        ro: false,
        image: { filename: path, 'virtual-size': 1 << 30 },
      },
    },
  ];
}

function qemu(reply: Json = served()): {
  readonly disks: Qcow2Disks;
  readonly drivers: DiskDrivers;
  readonly sent: Json[];
  readonly paths: string[];
} {
  const sent: Json[] = [];
  const paths: string[] = [];
  const monitor = new FakeMonitor((command, args) => {
    if (command === 'query-block') return reply;
    sent.push({ command, args });
    return {};
  });
  const connect = (path: string): Promise<FakeMonitor> => {
    paths.push(path);
    return Promise.resolve(monitor);
  };
  const disks = new Qcow2Disks(7, exchangeAt('/m', connect));
  return { disks, drivers: new DiskDrivers({ cwd: '/', images: disks }), sent, paths };
}

describe('qcow2 disks of a Xen domain', () => {
  it('can be snapshotted inside of the image when a QEMU serves them', async () => {
    const { disks, paths } = qemu();
    expect(await disks.describe([disk, raw])).toEqual([
      { ...disk, virtualSizeBytes: 1 << 30, snapshotModes: ['internal'] },
      raw,
    ]);
    expect(paths).toEqual(['/m']);
  });

  it('are none of the QEMU that serves another image', async () => {
    expect(await qemu(served('/srv/other.qcow2')).disks.describe([disk])).toEqual([disk]);
  });

  it('leave the monitor alone when there are none', async () => {
    const { disks, paths } = qemu();
    expect(await disks.describe([raw])).toEqual([raw]);
    expect(paths).toEqual([]);
  });

  it('cannot be snapshotted without a QEMU', async () => {
    const connect = (): Promise<never> => Promise.reject(new CheckpointError('VM_UNREACHABLE', 'none'));
    const without = new Qcow2Disks(7, exchangeAt('/m', connect));
    expect(await without.describe([disk])).toEqual([disk]);
  });

  it('are snapshotted under the name that QEMU has for them, and recorded under that of the domain', async () => {
    const { drivers, sent } = qemu();
    expect(await drivers.snapshot('c1', [disk], 'internal')).toEqual([
      {
        diskId: 'xvda',
        path: disk.path,
        driver: 'internal',
        data: { snapshotName: 'cairn-c1', overlayPath: '' },
      },
    ]);
    expect(sent).toEqual([
      {
        command: 'transaction',
        args: {
          actions: [
            { type: 'blockdev-snapshot-internal-sync', data: { device: '51712-qcow2', name: 'cairn-c1' } },
          ],
        },
      },
    ]);
  });

  it('are left alone while an HVM guest has them behind an emulated controller as well', async () => {
    const { drivers, sent } = qemu([...served(), ...served(disk.path, 'ide0-hd0')]);
    const [described] = await drivers.describe([disk]);
    expect(described).toMatchObject({ snapshotModes: [], whyNoSnapshot: expect.stringContaining('twice') });
    await expect(drivers.snapshot('c1', [disk], 'internal')).rejects.toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
    });
    expect(sent).toEqual([]);
  });

  it('lose the snapshots of a failed checkpoint', async () => {
    const { drivers, sent } = qemu();
    await drivers.drop(await drivers.snapshot('c1', [disk], 'internal'));
    expect(sent[1]).toEqual({
      command: 'blockdev-snapshot-delete-internal-sync',
      args: { device: '51712-qcow2', name: 'cairn-c1' },
    });
  });

  it.each([
    ['an overlay', 'external' as const, disk],
    ['a disk that QEMU does not serve', 'internal' as const, raw],
  ])('refuse %s', async (_, mode, which) => {
    await expect(qemu().drivers.snapshot('c1', [which], mode)).rejects.toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
    });
  });
});

describe('who writes to an image', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'cairn-writers-'));
  });
  afterEach(() => rmSync(dir, { recursive: true }));

  it.each([
    ['r+', 1],
    ['r', 0],
  ] as const)('is told for one that is open as %s', async (flags, count) => {
    const path = join(dir, 'image');
    writeFileSync(path, '');
    const fd = openSync(path, flags);
    try {
      const writers = await writersOf(path);
      expect(writers.filter((text) => text.includes(String(process.pid)))).toHaveLength(count);
    } finally {
      closeSync(fd);
    }
    expect(await writersOf(path)).toEqual([]);
  });
});
