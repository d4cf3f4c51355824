import { describe, expect, it } from '@jest/globals';

import { locationIn } from '../../adapters/disks/rbd/image-names.js';
import { DISK_DRIVERS } from '../../adapters/disks/disk-drivers.js';
import { RbdDriver } from '../../adapters/disks/rbd/rbd-driver.js';
import type { ImageSnapshot } from '../../adapters/disks/rbd/rbd-record.js';
import { checkImages } from '../../adapters/disks/rbd/rbd-restore.js';
import type { RunTool, ToolResult } from '../../adapters/disks/run-tool.js';
import { disksIn } from '../../adapters/libvirt/xml/domain-disks.js';
import { planDisks } from '../../src/disks/disk-plan.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';

const DONE: ToolResult = { kind: 'done', stdout: '' };
const HERE = '10.0.0.5';

/** The program rbd as far as it is asked here. */
class FakeRbd {
  readonly commands: string[] = [];
  id = '10ab';
  watchers: readonly string[] = [`${HERE}:0/1234`];
  snapshots: readonly string[] = ['cairn-c1'];
  isHanging = false;
  outcome: (command: string) => ToolResult = () => DONE;

  readonly run: RunTool = (tool, args) => {
    const command = [tool, ...args].join(' ');
    if (this.isHanging) return Promise.resolve({ kind: 'late' });
    const reply = (value: unknown): Promise<ToolResult> =>
      Promise.resolve({ kind: 'done', stdout: JSON.stringify(value) });
    if (args.includes('info')) return reply({ id: this.id });
    if (args.includes('status')) return reply({ watchers: this.watchers.map((address) => ({ address })) });
    if (args.includes('ls')) return reply(this.snapshots.map((name) => ({ name })));
    this.commands.push(command);
    return Promise.resolve(this.outcome(command));
  };
}

function filename(file: Record<string, unknown>, driver = 'raw'): string {
  return `json:${JSON.stringify({ driver, file: { driver: 'rbd', pool: 'vms', image: 'web', ...file } })}`;
}

function disk(path: string, id = 'd0'): VmDisk {
  return { id, path, format: 'raw', writable: true, virtualSizeBytes: 1 << 30, snapshotModes: [] };
}

function driver(fake: FakeRbd): RbdDriver {
  return new RbdDriver(fake.run, () => [HERE]);
}

describe('the name that QEMU has for a disk', () => {
  it('leads to the image and its cluster', () => {
    expect(
      locationIn(
        filename({
          namespace: 'tenant',
          conf: '/etc/ceph/b.conf',
          user: 'libvirt',
          'server.0.host': '10.0.0.1',
          'server.0.port': '6789',
          'server.1.host': 'fd00::1',
          'server.1.port': '3300',
        }),
      ),
    ).toEqual({
      pool: 'vms',
      namespace: 'tenant',
      name: 'web',
      conf: '/etc/ceph/b.conf',
      user: 'libvirt',
      monitors: '10.0.0.1:6789,[fd00::1]:3300',
    });
  });

  it.each([
    ['a file', '/srv/web.img'],
    ['a name that was cut off', filename({}).slice(0, -4)],
    ['an overlay on an image', 'json:{"driver":"qcow2","file":{"driver":"file"},"backing":{"driver":"rbd"}}'],
  ])('is none of Ceph for %s', (_, path) => {
    expect(locationIn(path)).toBeUndefined();
  });

  it.each([
    ['another format', filename({}, 'qcow2')],
    ['a snapshot', filename({ snapshot: 's1' })],
    ['a name that would be an option', filename({ image: '--conf' })],
    ['a name of two parts', filename({ image: 'a@b' })],
    ['a relative ceph.conf', filename({ conf: 'ceph.conf' })],
  ])('is refused for %s', (_, path) => {
    expect(locationIn(path)).toHaveProperty('whyNot');
  });
});

describe('disks on images of Ceph', () => {
  it('are snapshotted when a client of this host has them open', async () => {
    const fake = new FakeRbd();
    const rbd = driver(fake);
    const disks = await rbd.describe([disk(filename({ conf: '/c', user: 'u' })), disk('/srv/x', 'file')]);
    expect(disks[0]).toMatchObject({ path: 'rbd:vms/web', snapshotModes: ['rbd'] });
    expect(disks[1]).toEqual(disk('/srv/x', 'file'));
    const [snapshot] = await rbd.snapshot('c1', disks.slice(0, 1));
    expect(fake.commands).toEqual([
      'rbd --conf=/c --id u snap create --no-progress --snap=cairn-c1 --pool=vms --image=web',
    ]);
    expect(snapshot).toMatchObject({
      driver: 'rbd',
      feature: 'rbd-snapshot',
      data: { snapshotName: 'cairn-c1', image: { id: '10ab', conf: '/c' } },
    });
  });

  it.each([[[]], [['10.0.0.66:0/1']]])('are refused before the pause when those are %j', async (watchers) => {
    const fake = new FakeRbd();
    fake.watchers = watchers;
    const [web] = await driver(fake).describe([disk(filename({}))]);
    expect(web).toMatchObject({
      snapshotModes: [],
      whyNoSnapshot: expect.stringContaining('no client of this host'),
    });
  });

  it.each<[ToolResult, string]>([
    [{ kind: 'late' }, 'did not end in time'],
    [{ kind: 'missing' }, 'ceph-common'],
    [
      {
        kind: 'failed',
        text: '2026-11-23T19:53:59.541+0000 7fe35888d380 -1 auth: x; rbd: error opening image',
      },
      'rbd:vms/web: rbd: error opening image',
    ],
  ])('are refused before the pause when the cluster does not answer: %j', async (result, why) => {
    const rbd = new RbdDriver(
      () => Promise.resolve(result),
      () => [HERE],
    );
    const [web] = await rbd.describe([{ ...disk(filename({})), snapshotModes: ['internal'] }]);
    expect(web).toMatchObject({ snapshotModes: [], whyNoSnapshot: expect.stringContaining(why) });
  });

  it('get none at all when one of them cannot have one, and what was there before stays', async () => {
    const fake = new FakeRbd();
    const rbd = driver(fake);
    const disks = await rbd.describe([disk(filename({})), disk(filename({ image: 'db' }), 'd1')]);
    fake.outcome = (command) =>
      command.endsWith('create --no-progress --snap=cairn-c1 --pool=vms --image=db')
        ? { kind: 'failed', text: 'rbd: failed to create snapshot: (17) File exists' }
        : DONE;
    await expect(rbd.snapshot('c1', disks)).rejects.toMatchObject({
      code: 'DISK_SNAPSHOT_FAILED',
      message: expect.stringContaining('rbd:vms/db'),
      detail: { possiblyPresent: [] },
    });
    expect(fake.commands.filter((command) => command.includes('snap rm'))).toEqual([
      'rbd snap rm --no-progress --snap=cairn-c1 --pool=vms --image=web',
    ]);
  });

  it('are named when the cluster hangs in the pause, also one that may come into being later', async () => {
    const fake = new FakeRbd();
    const rbd = driver(fake);
    const disks = await rbd.describe([disk(filename({}))]);
    fake.outcome = () => ({ kind: 'late' });
    await expect(rbd.snapshot('c1', disks)).rejects.toMatchObject({
      detail: { possiblyPresent: [expect.stringContaining('cairn-c1 of rbd:vms/web')] },
    });
    fake.outcome = (command) =>
      command.includes('create')
        ? { kind: 'late' }
        : { kind: 'failed', text: 'rbd: failed to remove snapshot: (2) No such file or directory' };
    await expect(rbd.snapshot('c1', disks)).rejects.toMatchObject({
      detail: { possiblyPresent: [expect.stringContaining('cairn-c1 of rbd:vms/web, which may still')] },
    });
    fake.outcome = (command) => (command.includes('create') ? { kind: 'late' } : DONE);
    await expect(rbd.snapshot('c1', disks)).rejects.toMatchObject({ detail: { possiblyPresent: [] } });
  });

  it('are known by name before they are taken', async () => {
    const fake = new FakeRbd();
    const rbd = driver(fake);
    const disks = await rbd.describe([disk(filename({}))]);
    const plan = rbd.plan('c1', disks);
    expect(await rbd.snapshot('c1', disks)).toEqual(plan);
    expect(rbd.plan('c1', [disk('/srv/x', 'file')])).toEqual([]);
  });

  it.each(['/dev/rbd0', '/dev/rbd3p1', '/dev/rbd/vms/web'])(
    'are refused when the kernel maps them: %s',
    async (path) => {
      const fake = new FakeRbd();
      const [web] = await driver(fake).describe([
        { ...disk(path), whyNoSnapshot: 'it is no logical volume of lvm2' },
      ]);
      expect(web).toMatchObject({
        snapshotModes: [],
        whyNoSnapshot: expect.stringContaining('the kernel maps'),
      });
      const refusal = (): unknown =>
        planDisks([web!], DISK_DRIVERS, { memoryOnly: false, mode: 'auto', hookCoversDisks: false });
      expect(refusal).toThrow(expect.objectContaining({ code: 'DISK_NOT_COVERED' }));
      expect(refusal).toThrow(/rbd.*the kernel maps/);
    },
  );

  it('stay as they are when qcow2 lies on a mapped image, or the name only looks like one', async () => {
    const others = [{ ...disk('/dev/rbd0'), snapshotModes: ['internal'] as const }, disk('/dev/rbdx', 'x')];
    expect(await driver(new FakeRbd()).describe(others)).toEqual(others);
  });
});

describe('the question before the pause', () => {
  it('is for images alone, of which it asks each cluster', async () => {
    const fake = new FakeRbd();
    const rbd = driver(fake);
    await rbd.describe([disk('/srv/x')]);
    expect(await rbd.checkStorage()).toBe(false);
    await rbd.describe([disk(filename({}))]);
    expect(await rbd.checkStorage()).toBe(true);
  });

  it('refuses the pause when the cluster hangs by then', async () => {
    const fake = new FakeRbd();
    const rbd = driver(fake);
    await rbd.describe([disk(filename({}))]);
    fake.isHanging = true;
    await expect(rbd.checkStorage()).rejects.toMatchObject({
      code: 'DISK_STALLED',
      message: expect.stringContaining('rbd:vms/web: rbd status did not end in time'),
    });
  });

  it('is asked of an image as well that did not answer before, which no snapshot is wanted of', async () => {
    const fake = new FakeRbd();
    const rbd = driver(fake);
    fake.isHanging = true;
    await rbd.describe([disk(filename({}))]);
    await expect(rbd.checkStorage()).rejects.toMatchObject({ code: 'DISK_STALLED' });
    fake.isHanging = false;
    expect(await rbd.checkStorage()).toBe(true);
  });

  it('is not asked of an image that may be another one than QEMU’s', async () => {
    const fake = new FakeRbd();
    const rbd = driver(fake);
    fake.watchers = [];
    await rbd.describe([disk(filename({}))]);
    fake.isHanging = true;
    expect(await rbd.checkStorage()).toBe(false);
  });

  it('is not asked where this host cannot reach the cluster at all', async () => {
    const rbd = new RbdDriver(
      () => Promise.resolve({ kind: 'failed', text: "rbd: couldn't connect to the cluster!" }),
      () => [HERE],
    );
    await rbd.describe([disk(filename({}))]);
    expect(await rbd.checkStorage()).toBe(false);
  });
});

describe('a restore of an image of Ceph', () => {
  const wanted: ImageSnapshot = {
    diskId: 'd0',
    path: 'rbd:vms/web',
    snapshotName: 'cairn-c1',
    image: { pool: 'vms', namespace: '', name: 'web', id: '10ab', conf: '', user: '', monitors: '' },
  };

  function check(change: Partial<FakeRbd>, of = wanted): Promise<void> {
    return checkImages([of], Object.assign(new FakeRbd(), { watchers: [] }, change).run, 0);
  }

  it('needs the image, its snapshot, and nobody who has it open', async () => {
    await check({});
    await expect(check({ id: 'other' })).rejects.toMatchObject({ code: 'RESTORE_FAILED' });
    await expect(check({ snapshots: [] })).rejects.toMatchObject({ code: 'RESTORE_FAILED' });
    await expect(check({ watchers: ['10.0.0.9:0/1'] })).rejects.toMatchObject({
      code: 'RESTORE_TARGET_BUSY',
    });
  });

  it('takes no name out of a repository that could be something else', async () => {
    for (const name of ['--conf=x', 'a/b', 'a@b', '', 'a b']) {
      const other = { ...wanted, image: { ...wanted.image, name } };
      await expect(check({}, other)).rejects.toMatchObject({ code: 'RESTORE_FAILED' });
    }
    await expect(check({}, { ...wanted, snapshotName: '--all' })).rejects.toMatchObject({
      code: 'RESTORE_FAILED',
    });
  });
});

describe('an image of Ceph in the XML of a domain', () => {
  it('has the same name as in a checkpoint', () => {
    const disk =
      "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='vms/web'>" +
      "<host name='10.0.0.1' port='6789'/></source><target dev='vda' bus='virtio'/></disk>";
    expect(disksIn(`<domain><devices>${disk}</devices></domain>`)).toEqual([
      expect.objectContaining({ target: 'vda', path: 'rbd:vms/web', type: 'network' }),
    ]);
  });
});
