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
  hasWayBack = true,
): DiskDriverKind {
  const traits = { name, medium: 'device' as const, takenBy, autoLimitBytes: Infinity, isRemovable: true };
  const note = (call: string, snapshots: readonly DiskSnapshot[]): Promise<void> => {
    calls.push(`${name}.${call}(${snapshots.map(({ diskId }) => diskId).join(' ')})`);
    return failing.has(name) || snapshots.some(({ diskId }) => failing.has(`${call} ${diskId}`))
      ? Promise.reject(new Error(`${name} is out of order`))
      : Promise.resolve();
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
      ...(hasWayBack
        ? {
            keep: async (_: string, snapshots: readonly DiskSnapshot[]) => {
              await note('keep', snapshots);
              return snapshots.map(({ diskId }) => snapshot(`old-${diskId}`, name));
            },
          }
        : {}),
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

describe('disks that are put back', () => {
  let calls: string[];
  let failing: Set<string>;
  const open = (): DiskDrivers =>
    new DiskDrivers({ cwd: '/' }, [
      recording('image', 'hypervisor', calls, failing),
      recording('tape', 'storage', calls, failing, false),
      recording('pool', 'storage', calls, failing),
    ]);
  beforeEach(() => {
    calls = [];
    failing = new Set();
  });
  const mixed = [
    snapshot('a', 'image'),
    snapshot('b', 'image'),
    snapshot('c', 'pool'),
    snapshot('d', 'tape'),
  ];
  const forth = [
    'pool.keep(c)',
    'image.keep(a b)',
    'pool.rollBack(c)',
    'image.rollBack(a)',
    'image.rollBack(b)',
  ];
  const dropped = ['pool.drop(old-c)', 'image.drop(old-a)', 'image.drop(old-b)'];

  it('are all kept before the first is touched, and those without a way back go last', async () => {
    await open().rollBack(mixed);
    expect(calls).toEqual([...forth, 'tape.rollBack(d)']);
  });

  it('are not touched when what they are cannot be kept', async () => {
    failing.add('keep a');
    await expect(open().rollBack(mixed)).rejects.toThrow('image is out of order');
    expect(calls).toEqual([...forth.slice(0, 2), 'pool.drop(old-c)']);
  });

  it('are what they were when one of them fails', async () => {
    failing.add('rollBack b');
    await expect(open().rollBack(mixed)).rejects.toMatchObject({
      code: 'RESTORE_FAILED',
      message: 'image is out of order; all disks are as they were before the restore',
    });
    const back = ['image.rollBack(old-b)', 'image.rollBack(old-a)', 'pool.rollBack(old-c)'];
    expect(calls).toEqual([...forth, ...back, ...dropped]);
  });

  it('are named when they cannot be put back to what they were, which is kept', async () => {
    failing.add('rollBack b').add('rollBack old-b');
    await expect(open().rollBack(mixed)).rejects.toMatchObject({
      message: expect.stringContaining('/dev/old-b is NOT as it was before'),
      detail: { notPutBack: ['/dev/old-b'] },
    });
    expect(calls.slice(-2)).toEqual(['pool.drop(old-c)', 'image.drop(old-a)']);
  });

  it('are named when they have no way back and fail; all others are what they were', async () => {
    failing.add('rollBack d');
    await expect(open().rollBack(mixed)).rejects.toMatchObject({
      message: expect.stringContaining('/dev/d may be at the checkpoint, or half way'),
      detail: { notPutBack: ['/dev/d'] },
    });
    expect(calls.slice(-6, -3)).toEqual([
      'image.rollBack(old-b)',
      'image.rollBack(old-a)',
      'pool.rollBack(old-c)',
    ]);
  });

  it('are what they were when the restore fails later, once', async () => {
    const rolledBack = await open().rollBack(mixed.slice(0, 3));
    calls.length = 0;
    expect(await rolledBack.putBack()).toBe('');
    expect(await rolledBack.putBack()).toBe('');
    await rolledBack.settle();
    expect(calls).toEqual([
      ...['image.rollBack(old-b)', 'image.rollBack(old-a)', 'pool.rollBack(old-c)'],
      ...dropped,
    ]);
  });

  it('stay together at the checkpoint when the restore fails later and one has no way back', async () => {
    const rolledBack = await open().rollBack(mixed);
    calls.length = 0;
    expect(await rolledBack.putBack()).toContain('/dev/d (tape) has no way back');
    expect(calls).toEqual(dropped);
  });

  it('are let go of once the VM runs, and what cannot be is no failure', async () => {
    const rolledBack = await open().rollBack(mixed);
    calls.length = 0;
    failing.add('drop old-a');
    await rolledBack.settle();
    expect(calls).toEqual(dropped);
  });
});

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
    expect(calls).toEqual(['image.check(a)', 'image.keep(a)', 'image.rollBack(a)', 'image.drop(a)']);
  });

  it('hand each driver its own snapshots in one call, the storage before the hypervisor', async () => {
    const mixed = [
      snapshot('a', 'image'),
      snapshot('b', 'pool'),
      snapshot('c', 'image'),
      snapshot('d', 'pool'),
    ];
    await drivers.drop(mixed);
    expect(calls).toEqual(['pool.drop(b d)', 'image.drop(a c)']);
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
