import { describe, expect, it } from '@jest/globals';

import type { RunTool, ToolResult } from '../../adapters/disks/run-tool.js';
import { ZfsDriver, type ZfsDevices } from '../../adapters/disks/zfs/zfs-driver.js';
import { isVolumeName } from '../../adapters/disks/zfs/zfs-command.js';
import { checkZvols } from '../../adapters/disks/zfs/zfs-restore.js';
import { zvolRecord, zvolSnapshot, type ZvolSnapshot } from '../../adapters/disks/zfs/zfs-record.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';

const DONE: ToolResult = { kind: 'done', stdout: '' };

/** The program zfs, and the devices of its volumes, as far as they are asked here. */
class FakeZfs {
  readonly commands: string[] = [];
  readonly volumes = new Map([
    ['/dev/zvol/tank/web', 'tank/web'],
    ['/dev/zvol/tank/db', 'tank/db'],
    ['/dev/zd32', 'fast/log'],
  ]);
  version = 'zfs-2.1.11-1+deb12u1\nzfs-kmod-2.1.11-1+deb12u1\n';
  guid = '7';
  /** Name and transaction group. */
  snapshots: readonly (readonly [string, number])[] = [['tank/web@cairn-c1', 100]];
  user: string | undefined;
  outcome: (command: string) => ToolResult = () => DONE;

  readonly run: RunTool = (tool, args) => {
    const command = [tool, ...args].join(' ');
    const reply = (rows: readonly (readonly (string | number)[])[]): Promise<ToolResult> =>
      Promise.resolve({ kind: 'done', stdout: rows.map((row) => `${row.join('\t')}\n`).join('') });
    if (args[0] === 'version') return Promise.resolve({ kind: 'done', stdout: this.version });
    if (args.includes('volume')) return reply([[args.at(-1)!, this.guid]]);
    if (args.includes('snapshot,bookmark')) return reply(this.snapshots);
    this.commands.push(command);
    return Promise.resolve(this.outcome(command));
  };

  readonly devices: ZfsDevices = {
    volumeNameOf: (path) => Promise.resolve(this.volumes.get(path)),
    flush: (path) => Promise.resolve(void this.commands.push(`flush ${path}`)),
    userOf: () => Promise.resolve(this.user),
    forgetCachedPages: (path) => Promise.resolve(void this.commands.push(`forget ${path}`)),
  };
}

function disk(path: string, id = 'd0'): VmDisk {
  return { id, path, format: 'raw', writable: true, virtualSizeBytes: 1 << 30, snapshotModes: [] };
}

const WEB = disk('/dev/zvol/tank/web', 'web');
const DB = disk('/dev/zvol/tank/db', 'db');
const LOG = disk('/dev/zd32', 'log');

function driver(fake: FakeZfs, allowsUnproven = true): ZfsDriver {
  return new ZfsDriver({ run: fake.run, devices: fake.devices, allowsUnproven });
}

const SNAPSHOT: ZvolSnapshot = {
  diskId: 'web',
  path: '/dev/zvol/tank/web',
  volume: 'tank/web',
  guid: '7',
  snapshotName: 'cairn-c1',
};

describe('ZFS volumes', () => {
  it('are told from other disks by the kernel module, and asked about only then', async () => {
    const fake = new FakeZfs();
    const others = [
      disk('/srv/a.img', 'file'),
      { ...WEB, writable: false },
      { ...WEB, snapshotModes: ['internal'] },
    ];
    expect(await driver(fake).describe([WEB, ...others])).toEqual([
      { ...WEB, snapshotModes: ['zfs'] },
      ...others,
    ]);
  });

  it('lose what another driver said of them', async () => {
    const [described] = await driver(new FakeZfs()).describe([
      { ...WEB, whyNoSnapshot: 'it is no logical volume' },
    ]);
    expect(described).toEqual({ ...WEB, snapshotModes: ['zfs'] });
  });

  it.each<[what: string, change: (fake: FakeZfs) => void, why: string]>([
    ['an unknown release', (fake) => (fake.version = 'zfs-kmod-9.9.1\n'), 'were not proven with OpenZFS 9.9'],
    [
      'a device of a snapshot',
      (fake) => fake.volumes.set(WEB.path, 'tank/web@cairn-c1'),
      'it is a snapshot itself',
    ],
    [
      'a name with a blank',
      (fake) => fake.volumes.set(WEB.path, 'tank/my web'),
      'whose name cairn does not pass on',
    ],
  ])('are refused with the reason for %s', async (_, change, why) => {
    const fake = new FakeZfs();
    change(fake);
    const [described] = await driver(fake, false).describe([WEB]);
    expect(described).toMatchObject({ snapshotModes: [], whyNoSnapshot: expect.stringContaining(why) });
  });

  it('are refused when zfs is not installed', async () => {
    const run: RunTool = () => Promise.resolve({ kind: 'missing' });
    const missing = new ZfsDriver({ run, devices: new FakeZfs().devices, allowsUnproven: true });
    expect(await missing.describe([WEB])).toMatchObject([
      { whyNoSnapshot: expect.stringContaining('zfsutils-linux') },
    ]);
  });

  it('are snapshotted by one command for each pool, when what is cached is written', async () => {
    const fake = new FakeZfs();
    const zfs = driver(fake);
    const disks = await zfs.describe([WEB, LOG, DB]);
    const taken = await zfs.snapshot('c9', disks);
    expect(fake.commands).toEqual([
      ...['flush /dev/zvol/tank/web', 'flush /dev/zd32', 'flush /dev/zvol/tank/db'],
      'zfs snapshot tank/web@cairn-c9 tank/db@cairn-c9',
      'zfs snapshot fast/log@cairn-c9',
    ]);
    expect(taken).toEqual(zfs.plan('c9', disks));
    expect(taken.map(zvolSnapshot)).toMatchObject([
      { volume: 'tank/web', guid: '7' },
      { volume: 'fast/log' },
      {},
    ]);
  });

  it('get none when one pool refuses', async () => {
    const fake = new FakeZfs();
    fake.outcome = (command) =>
      command.includes('fast/log') ? { kind: 'failed', text: 'out of space' } : DONE;
    const zfs = driver(fake);
    const failing = zfs.snapshot('c9', await zfs.describe([WEB, LOG]));
    await expect(failing).rejects.toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
      detail: { possiblyPresent: [] },
    });
    expect(fake.commands.at(-1)).toBe('zfs destroy tank/web@cairn-c9');
  });

  it('may get one later from a command that was killed, which is said', async () => {
    const fake = new FakeZfs();
    fake.outcome = () => ({ kind: 'late' });
    const zfs = driver(fake);
    const failing = zfs.snapshot('c9', await zfs.describe([WEB]));
    await expect(failing).rejects.toMatchObject({
      detail: { possiblyPresent: [expect.stringContaining('tank/web@cairn-c9')] },
    });
  });

  it('are dropped, and one that is gone is no failure', async () => {
    const fake = new FakeZfs();
    const records = [zvolRecord(SNAPSHOT)];
    fake.outcome = () => ({
      kind: 'failed',
      text: 'could not find any snapshots to destroy; check snapshot names.',
    });
    await driver(fake).drop(records);
    fake.outcome = () => ({ kind: 'failed', text: 'snapshot has dependent clones' });
    await expect(driver(fake).drop(records)).rejects.toMatchObject({
      message: expect.stringContaining('tank/web@cairn-c1 (snapshot has dependent clones)'),
    });
    expect(driver(fake).remedy(records[0]!)).toBe('zfs destroy tank/web@cairn-c1');
  });
});

describe('a restore of ZFS volumes', () => {
  it('rolls back, and has the kernel forget what it had read', async () => {
    const fake = new FakeZfs();
    await driver(fake).check([zvolRecord(SNAPSHOT)]);
    await driver(fake).rollBack([zvolRecord(SNAPSHOT)]);
    expect(fake.commands).toEqual(['zfs rollback tank/web@cairn-c1', 'forget /dev/zvol/tank/web']);
  });

  it.each<[what: string, change: (fake: FakeZfs) => void, code: string, text: string]>([
    ['another volume of the name', (fake) => (fake.guid = '8'), 'RESTORE_FAILED', 'another one'],
    ['no such snapshot', (fake) => (fake.snapshots = []), 'RESTORE_FAILED', 'no snapshot cairn-c1 any more'],
    [
      'a later snapshot',
      (fake) => (fake.snapshots = [['tank/web@cairn-c2', 120], ...fake.snapshots, ['tank/web@old', 50]]),
      'DISK_CHANGED',
      'would destroy what came later: tank/web@cairn-c2',
    ],
    [
      'a bookmark of the same moment',
      (fake) => (fake.snapshots = [...fake.snapshots, ['tank/web#b', 100]]),
      'DISK_CHANGED',
      '#b',
    ],
    ['a volume that is open', (fake) => (fake.user = 'qemu (7)'), 'RESTORE_TARGET_BUSY', 'qemu (7)'],
  ])('is refused for %s', async (_, change, code, text) => {
    const fake = new FakeZfs();
    change(fake);
    await expect(checkZvols([SNAPSHOT], fake.run, fake.devices, 0)).rejects.toMatchObject({
      code,
      message: expect.stringContaining(text),
    });
    expect(fake.commands).toEqual([]);
  });

  it.each([
    ['volume', '-r'],
    ['volume', 'tank/web@x'],
    ['snapshotName', 'cairn-a%cairn-b'],
  ])('is refused for a record whose %s is %s', (field, value) => {
    const record = zvolRecord({ ...SNAPSHOT, [field]: value });
    expect(() => zvolSnapshot(record)).toThrow(expect.objectContaining({ code: 'REPO_DAMAGED' }));
  });
});

it.each([
  ['tank/vm/web-1.raw:a', true],
  ['tank', false],
  ['tank//web', false],
  ['tank/-r', false],
  ['/tank/web', false],
])('the name %s is that of a volume: %s', (name, isOne) => {
  expect(isVolumeName(name)).toBe(isOne);
});
