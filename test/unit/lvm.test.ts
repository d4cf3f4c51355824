import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { DifferingRuns } from '../../adapters/disks/lvm/differing-runs.js';
import { isVolumeName } from '../../adapters/disks/lvm/logical-volumes.js';
import { runTool, type RunTool, type ToolResult } from '../../adapters/disks/run-tool.js';
import { LvmDriver, snapshotSizeArguments } from '../../adapters/disks/lvm/lvm-driver.js';
import { volumeRecord, type VolumeSnapshot } from '../../adapters/disks/lvm/lvm-record.js';
import { checkVolumes } from '../../adapters/disks/lvm/lvm-restore.js';
import { resumeSuspended } from '../../adapters/disks/lvm/suspended-devices.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';

type Row = Readonly<Record<string, string>>;

const THICK: Row = {
  vg_name: 'vg0',
  lv_name: 'web',
  lv_uuid: 'AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA',
  lv_size: '1073741824',
  segtype: 'linear',
  lv_kernel_major: '254',
  lv_kernel_minor: '3',
  lv_attr: '-wi-ao----',
  vg_attr: 'wz--n-',
};
const THIN: Row = {
  ...THICK,
  lv_name: 'thin',
  lv_uuid: 'B',
  segtype: 'thin',
  pool_lv: 'pool',
  lv_kernel_minor: '4',
};
const POOL: Row = { ...THICK, lv_name: 'pool', lv_uuid: 'P', segtype: 'thin-pool', lv_kernel_minor: '5' };

const DONE: ToolResult = { kind: 'done', stdout: '' };

/** lvm2 as far as it is asked here: a list of volumes, and what comes of the other commands. */
class FakeTools {
  readonly commands: string[] = [];
  rows: readonly Row[] = [THICK, THIN, POOL];
  outcome: (command: string) => ToolResult = () => DONE;

  readonly run: RunTool = (tool, args) => {
    if (args[0] === 'lvs') {
      return Promise.resolve({ kind: 'done', stdout: JSON.stringify({ report: [{ lv: this.rows }] }) });
    }
    const command = [tool, ...args].join(' ');
    this.commands.push(command);
    return Promise.resolve(this.outcome(command));
  };
}

function disk(name: string): VmDisk {
  return {
    id: name,
    path: `/dev/vg0/${name}`,
    format: 'raw',
    writable: true,
    virtualSizeBytes: 1 << 30,
    snapshotModes: [],
  };
}

function driver(tools: FakeTools, snapshotSize?: string): LvmDriver {
  const devices: Record<string, string> = {
    '/dev/vg0/web': '254:3',
    '/dev/vg0/thin': '254:4',
    '/dev/sdb': '8:16',
  };
  return new LvmDriver({ snapshotSize }, tools.run, (path) => Promise.resolve(devices[path] ?? ''));
}

describe('disks on logical volumes', () => {
  it('are found by their device, whatever path the hypervisor has', async () => {
    const lvm = driver(new FakeTools());
    const [web, sdb, file] = await lvm.describe([
      disk('web'),
      { ...disk('x'), path: '/dev/sdb' },
      disk('file'),
    ]);
    expect(web).toMatchObject({ snapshotModes: ['lvm'] });
    expect(sdb).toMatchObject({ snapshotModes: [], whyNoSnapshot: 'it is no logical volume of lvm2' });
    expect(file).toEqual(disk('file'));
  });

  it.each<[string, Partial<Row>]>([
    ['is shared', { vg_attr: 'wz--ns' }],
    ['were not tested', { segtype: 'cache' }],
    ['is a snapshot itself', { origin: 'other' }],
  ])('are refused before the pause when the volume %s', async (why, change) => {
    const tools = new FakeTools();
    tools.rows = [{ ...THICK, ...change } as Row];
    const [web] = await driver(tools).describe([disk('web')]);
    expect(web!.snapshotModes).toEqual([]);
    expect(web!.whyNoSnapshot).toContain(why);
  });

  it('say so when lvm2 cannot be asked', async () => {
    const lvm = new LvmDriver(
      {},
      () => Promise.resolve({ kind: 'missing' }),
      () => Promise.resolve('254:3'),
    );
    expect((await lvm.describe([disk('web')]))[0]).toMatchObject({
      whyNoSnapshot: expect.stringContaining('lvm2'),
    });
  });

  it('get read-only snapshots, with room where the volume is thick', async () => {
    const tools = new FakeTools();
    const lvm = driver(tools, '2G');
    const disks = await lvm.describe([disk('web'), disk('thin')]);
    const snapshots = await lvm.snapshot('c1', disks);
    expect(tools.commands).toEqual([
      'lvm lvcreate --yes --quiet --snapshot --permission r --addtag cairn --size 2G --name web-cairn-c1 vg0/web',
      'lvm lvcreate --yes --quiet --snapshot --permission r --addtag cairn --name thin-cairn-c1 vg0/thin',
    ]);
    expect(snapshots).toEqual([
      {
        diskId: 'web',
        path: '/dev/vg0/web',
        driver: 'lvm',
        feature: 'lvm-snapshot',
        data: {
          snapshotName: 'web-cairn-c1',
          overlayPath: '',
          volume: { vgName: 'vg0', name: 'web', uuid: THICK.lv_uuid },
        },
      },
      expect.objectContaining({ data: expect.objectContaining({ snapshotName: 'thin-cairn-c1' }) }),
    ]);
  });

  it('get none at all when one of them cannot have one', async () => {
    const tools = new FakeTools();
    const lvm = driver(tools);
    const disks = await lvm.describe([disk('web'), disk('thin')]);
    tools.outcome = (command) =>
      command.includes('lvcreate') && command.endsWith('thin') ? { kind: 'failed', text: 'no space' } : DONE;
    await expect(lvm.snapshot('c1', disks)).rejects.toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
      message: expect.stringContaining('no space'),
      detail: { possiblyPresent: [] },
    });
    expect(tools.commands.at(-1)).toBe('lvm lvremove --yes --quiet vg0/web-cairn-c1');
  });

  it('are looked for when lvcreate had to be killed, and what cannot be removed is named', async () => {
    const tools = new FakeTools();
    const lvm = driver(tools);
    const disks = await lvm.describe([disk('web')]);
    tools.outcome = () => ({ kind: 'late' });
    await expect(lvm.snapshot('c1', disks)).rejects.toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
      detail: { possiblyPresent: [expect.stringContaining('vg0/web-cairn-c1')] },
    });
    tools.outcome = (command) =>
      command.includes('lvcreate')
        ? { kind: 'late' }
        : { kind: 'failed', text: 'Failed to find logical volume "vg0/web-cairn-c1"' };
    await expect(lvm.snapshot('c1', disks)).rejects.toMatchObject({ detail: { possiblyPresent: [] } });
  });
});

describe('a device left suspended', () => {
  let sysfs: string;
  beforeEach(() => {
    sysfs = mkdtempSync(join(tmpdir(), 'cairn-sysfs-'));
    const group = 'g'.repeat(32);
    const volume = 'A'.repeat(32);
    const devices: readonly (readonly [string, string, string])[] = [
      ['vg0-web', `LVM-${group}${volume}`, '1'],
      ['vg0-web-real', `LVM-${group}${volume}-real`, '1'],
      ['vg0-other', `LVM-${group}${'C'.repeat(32)}`, '1'],
      ['vg0-web-cow', `LVM-${group}${volume}-cow`, '0'],
      ['luks', 'CRYPT-LUKS2-0123', '1'],
    ];
    devices.forEach(([name, uuid, suspended], i) => {
      const dir = join(sysfs, `dm-${i}`, 'dm');
      mkdirSync(dir, { recursive: true });
      for (const [file, text] of Object.entries({ name, uuid, suspended }))
        writeFileSync(join(dir, file), `${text}\n`);
    });
    mkdirSync(join(sysfs, 'sda'));
  });
  afterEach(() => rmSync(sysfs, { recursive: true }));

  it('is resumed with what is below it first, and nobody else', async () => {
    const tools = new FakeTools();
    expect(await resumeSuspended([THICK.lv_uuid!, ''], tools.run, sysfs)).toEqual([]);
    expect(tools.commands).toEqual(['dmsetup resume vg0-web-real', 'dmsetup resume vg0-web']);
    tools.outcome = () => ({ kind: 'failed', text: 'Device busy' });
    expect(await resumeSuspended([THICK.lv_uuid!], tools.run, sysfs)).toEqual([
      'vg0-web-real: Device busy',
      'vg0-web: Device busy',
    ]);
  });
});

describe('a restore of a logical volume', () => {
  const SNAPSHOT: Row = {
    ...THICK,
    lv_name: 'web-cairn-c1',
    lv_uuid: 'S',
    origin: 'web',
    data_percent: '12.5',
  };
  const wanted: VolumeSnapshot = {
    diskId: 'web',
    path: '/dev/vg0/web',
    snapshotName: 'web-cairn-c1',
    volume: { vgName: 'vg0', name: 'web', uuid: THICK.lv_uuid! },
  };

  function check(rows: readonly Row[], disks = [wanted]): Promise<void> {
    const tools = new FakeTools();
    tools.rows = rows;
    return checkVolumes(disks, tools.run, 0);
  }

  it('needs the volume and its snapshot', async () => {
    await check([THICK, SNAPSHOT]);
  });

  it.each<[string, readonly Row[]]>([
    ['the snapshot is gone', [THICK]],
    ['the snapshot is of another volume', [THICK, { ...SNAPSHOT, origin: 'other' }]],
    ['the snapshot has overflowed', [THICK, { ...SNAPSHOT, lv_snapshot_invalid: 'snapshot invalid' }]],
    ['the snapshot has overflowed, by its attributes', [THICK, { ...SNAPSHOT, lv_attr: 'sri-I-s---' }]],
    ['the snapshot is full', [THICK, { ...SNAPSHOT, data_percent: '100.00' }]],
    ['another volume has the name', [{ ...THICK, lv_uuid: 'Z' }, SNAPSHOT]],
    [
      'the volume has grown',
      [
        { ...THICK, lv_size: '2' },
        { ...SNAPSHOT, segtype: 'thin', lv_size: '1' },
      ],
    ],
  ])('is refused when %s', async (_, rows) => {
    await expect(check(rows)).rejects.toMatchObject({ code: 'RESTORE_FAILED' });
  });

  it('is refused while somebody has the volume open', async () => {
    await expect(check([{ ...THICK, lv_device_open: 'open' }, SNAPSHOT])).rejects.toMatchObject({
      code: 'RESTORE_TARGET_BUSY',
    });
  });

  it('takes no name out of a repository that could be something else', async () => {
    for (const name of ['--config=x', 'a/b', '..', '', 'a b', 'x'.repeat(128)]) {
      expect(isVolumeName(name)).toBe(false);
      await expect(check([THICK, SNAPSHOT], [{ ...wanted, snapshotName: name }])).rejects.toMatchObject({
        code: 'RESTORE_FAILED',
      });
    }
  });

  it('keeps what a thin volume was by a snapshot of its own; a thick one has no way back', async () => {
    const tools = new FakeTools();
    const thin = { ...wanted, diskId: 'thin', path: '/dev/vg0/thin', snapshotName: 'thin-cairn-c1' };
    const records = [wanted, { ...thin, volume: { vgName: 'vg0', name: 'thin', uuid: 'B' } }].map(
      volumeRecord,
    );
    const ofThin = {
      ...SNAPSHOT,
      lv_name: 'thin-cairn-c1',
      segtype: 'thin',
      origin: 'thin',
      lv_size: THIN.lv_size!,
    };
    tools.rows = [THICK, SNAPSHOT, THIN, POOL, ofThin];
    const [ofThick, kept] = await driver(tools).keep('before-01234567', records);
    expect(ofThick).toBeUndefined();
    expect(kept).toMatchObject({ diskId: 'thin', data: { snapshotName: 'thin-cairn-before-01234567' } });
    expect(tools.commands).toEqual([
      expect.stringMatching(
        /lvcreate .*--snapshot --permission r .*--name thin-cairn-before-01234567 vg0\/thin$/,
      ),
    ]);
    tools.outcome = (command) => (command.includes('lvcreate') ? { kind: 'failed', text: 'no room' } : DONE);
    await expect(driver(tools).keep('before-01234567', records)).rejects.toMatchObject({
      code: 'RESTORE_FAILED',
      message: expect.stringContaining('no room'),
    });
    expect(tools.commands.at(-1)).toContain('lvremove');
  });

  it('asks for nothing when there is no volume', async () => {
    await checkVolumes([], () => Promise.reject(new Error('not asked')));
  });
});

describe('the size of a snapshot', () => {
  it('is what lvcreate takes, and nothing else', () => {
    expect(snapshotSizeArguments('10G')).toEqual(['--size', '10G']);
    expect(snapshotSizeArguments('20%ORIGIN')).toEqual(['--extents', '20%ORIGIN']);
    for (const size of ['', '10', '-5G', '20%', '5% ORIGIN', '--yes', '1e9G'])
      expect(() => snapshotSizeArguments(size)).toThrow(expect.objectContaining({ code: 'USAGE' }));
  });
});

describe('a tool', () => {
  it('runs with an environment of its own, and is told apart when it fails, is late or is not there', async () => {
    expect(await runTool('sh', ['-c', 'echo "$LC_ALL$HOME"'], 5000)).toEqual({ kind: 'done', stdout: 'C\n' });
    expect(await runTool('sh', ['-c', 'echo no >&2; echo why >&2; exit 5'], 5000)).toEqual({
      kind: 'failed',
      text: 'no; why',
    });
    expect(await runTool('sleep', ['100'], 20)).toEqual({ kind: 'late' });
    expect(await runTool('no-such-tool-of-cairn', [], 5000)).toEqual({ kind: 'missing' });
  });
});

describe('what differs', () => {
  it('comes as runs, in pieces of a bounded size', () => {
    const runs = new DifferingRuns();
    for (const block of [0, 1, 2, 3, 4, 9, 11, 12]) runs.add(block);
    expect(runs.blockCount).toBe(8);
    expect([...runs.pieces(3)].map(({ firstBlock, blockCount }) => [firstBlock, blockCount])).toEqual([
      [0, 3],
      [3, 2],
      [9, 1],
      [11, 2],
    ]);
  });
});
