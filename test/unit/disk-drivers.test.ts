import { beforeEach, describe, expect, it } from '@jest/globals';

import { DiskDrivers } from '../../adapters/disks/disk-drivers.js';
import type { DiskDriverKind } from '../../adapters/disks/disk-means.js';
import type { DiskSnapshot, VmDisk } from '../../src/hypervisor/disks.js';

/** A driver that writes down what it is asked for, and fails to drop when it is told to. */
function recording(
  name: string,
  takenBy: 'hypervisor' | 'storage',
  calls: string[],
  failing: ReadonlySet<string>,
): DiskDriverKind {
  const traits = { name, medium: 'device' as const, takenBy, autoLimitBytes: Infinity, isRemovable: true };
  const note = (call: string, snapshots: readonly DiskSnapshot[]): Promise<void> => {
    calls.push(`${name}.${call}(${snapshots.map(({ diskId }) => diskId).join(' ')})`);
    return failing.has(name) ? Promise.reject(new Error(`${name} is out of order`)) : Promise.resolve();
  };
  return {
    ...traits,
    open: () => ({
      ...traits,
      describe: (disks) =>
        Promise.resolve(disks.map((disk) => ({ ...disk, snapshotModes: [...disk.snapshotModes, name] }))),
      plan: () => [],
      snapshot: (_, disks) => Promise.resolve(disks.map(({ id }) => snapshot(id, name))),
      drop: (snapshots) => note('drop', snapshots),
      remedy: ({ diskId }) => `remove ${diskId} by ${name}`,
      check: (snapshots) => note('check', snapshots),
      rollBack: (snapshots) => note('rollBack', snapshots),
    }),
  };
}

function snapshot(diskId: string, driver: string): DiskSnapshot {
  return { diskId, path: `/dev/${diskId}`, driver, data: {} };
}

function disk(id: string): VmDisk {
  return {
    id,
    path: `/dev/${id}`,
    format: 'raw',
    writable: true,
    virtualSizeBytes: 1 << 30,
    snapshotModes: [],
  };
}

describe('all disk drivers as one', () => {
  let calls: string[];
  let failing: Set<string>;
  let drivers: DiskDrivers;
  beforeEach(() => {
    calls = [];
    failing = new Set();
    drivers = new DiskDrivers({ cwd: '/' }, [
      recording('image', 'hypervisor', calls, failing),
      recording('volume', 'storage', calls, failing),
      recording('pool', 'storage', calls, failing),
    ]);
  });

  it('ask a driver for nothing when no snapshot is its own', async () => {
    await drivers.check([snapshot('a', 'image')]);
    await drivers.rollBack([snapshot('a', 'image')]);
    await drivers.drop([snapshot('a', 'image')]);
    expect(calls).toEqual(['image.check(a)', 'image.rollBack(a)', 'image.drop(a)']);
  });

  it('hand each driver its own snapshots in one call, the storage before the hypervisor', async () => {
    const mixed = [
      snapshot('a', 'image'),
      snapshot('b', 'pool'),
      snapshot('c', 'image'),
      snapshot('d', 'pool'),
    ];
    await drivers.rollBack(mixed);
    await drivers.drop(mixed);
    expect(calls).toEqual(['pool.rollBack(b d)', 'image.rollBack(a c)', 'pool.drop(b d)', 'image.drop(a c)']);
  });

  it('offer each disk to every driver, in the order of their registration', async () => {
    const described = await drivers.describe([disk('a')]);
    expect(described.map(({ snapshotModes }) => snapshotModes)).toEqual([['image', 'volume', 'pool']]);
  });

  it('take a snapshot by the driver that was asked for, and no other', async () => {
    expect(await drivers.snapshot('c1', [disk('a')], 'pool')).toEqual([snapshot('a', 'pool')]);
    await expect(drivers.snapshot('c1', [disk('a')], 'tape')).rejects.toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
      detail: { driver: 'tape' },
    });
  });

  it('drop what the other drivers took when one fails, and say which failed', async () => {
    failing.add('pool');
    await expect(
      drivers.drop([snapshot('a', 'image'), snapshot('b', 'pool'), snapshot('c', 'volume')]),
    ).rejects.toThrow('pool is out of order');
    expect(calls).toEqual(['volume.drop(c)', 'pool.drop(b)', 'image.drop(a)']);
  });

  it('refuse a restore before anything is touched when a snapshot is by a driver that is not there', async () => {
    await expect(drivers.check([snapshot('a', 'image'), snapshot('t', 'tape')])).rejects.toMatchObject({
      code: 'VM_UNSUPPORTED',
      detail: { driver: 'tape' },
    });
    expect(calls).toEqual([]);
    expect(drivers.remedy(snapshot('t', 'tape'))).toContain('no such disk driver');
  });

  it('leave out a driver that was not tried with the hypervisor, with its reason', () => {
    const some = new DiskDrivers({ cwd: '/', untried: { pool: 'it was not tried here' } }, [
      recording('pool', 'storage', calls, failing),
    ]);
    expect(some.drivers).toEqual([]);
    expect(() => some.refuseUnknown([snapshot('b', 'pool')])).toThrow('it was not tried here');
  });
});
