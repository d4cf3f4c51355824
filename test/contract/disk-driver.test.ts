/** Every registered disk driver, over fakes of what takes its snapshots; the lab has the real ones. */

import { afterAll, describe, expect, it } from '@jest/globals';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { copyDriver } from '../../adapters/disks/copy/copy-driver.js';
import { DISK_DRIVERS } from '../../adapters/disks/disk-drivers.js';
import { LvmDriver, lvmDriver } from '../../adapters/disks/lvm/lvm-driver.js';
import { externalDriver } from '../../adapters/disks/qcow2/external-driver.js';
import { internalDriver } from '../../adapters/disks/qcow2/internal-driver.js';
import { monitorImages, monitorOverlays } from '../../adapters/disks/qcow2/monitor-snapshots.js';
import { RbdDriver, rbdDriver } from '../../adapters/disks/rbd/rbd-driver.js';
import type { RunTool, ToolResult } from '../../adapters/disks/run-tool.js';
import { asArray, asObject, asText } from '../../adapters/qemu/qmp-json.js';
import { ZfsDriver, zfsDriver } from '../../adapters/disks/zfs/zfs-driver.js';
import { CheckpointError } from '../../src/errors.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';
import type { JsonObject } from '../../src/types.js';
import { FakeMonitor } from '../support/fake-monitor.js';
import { describeDiskDriver, type DiskDriverUnderTest } from './disk-driver.js';

const dir = mkdtempSync(join(tmpdir(), 'cairn-driver-'));
afterAll(() => rmSync(dir, { recursive: true }));

function disk(id: string, path: string, format: string): VmDisk {
  return { id, path, format, writable: true, virtualSizeBytes: 1 << 30, snapshotModes: [] };
}

/** A QEMU with two images; takes all members of a transaction, or none. */
function qemu(kind: typeof internalDriver): DiskDriverUnderTest {
  const there = new Set<string>();
  let refused = '';
  const monitor = new FakeMonitor((command, args) => {
    if (command === 'query-block') return [{ device: 'hd0' }, { device: 'hd1' }];
    if (command === 'blockdev-snapshot-delete-internal-sync') there.delete(nameOf(args));
    if (command !== 'transaction') return {};
    const members = asArray(args.actions ?? null).map(({ data }) => asObject(data));
    if (members.some(({ device }) => device === refused))
      throw new CheckpointError('QMP_COMMAND', 'no medium');
    for (const member of members) there.add(nameOf(member));
    return {};
  });
  const disks = ['hd0', 'hd1'].map((id) => disk(id, join(dir, `${id}.qcow2`), 'qcow2'));
  for (const { path } of disks) writeFileSync(path, 'an image');
  return {
    driver: kind.open({ cwd: dir, images: monitorImages(monitor), overlays: monitorOverlays(monitor) }),
    disks,
    snapshots: () => [...there],
    refuseLast: () => (refused = 'hd1'),
    wayBack: kind === internalDriver ? 'lab' : 'none',
  };
}

function nameOf(args: JsonObject): string {
  return `${asText(args.device)}@${asText(args.name) || asText(args['snapshot-file'])}`;
}

const DONE: ToolResult = { kind: 'done', stdout: '' };
const reply = (value: unknown): ToolResult => ({ kind: 'done', stdout: JSON.stringify(value) });

function lvm(): DiskDriverUnderTest {
  const there = new Set<string>();
  let refused = '';
  const volumes = ['a', 'b'].map((name, i) => ({
    ...{ vg_name: 'vg0', lv_name: name, lv_uuid: name, lv_size: '1', segtype: 'linear' },
    ...{ lv_kernel_major: '254', lv_kernel_minor: `${i}`, lv_attr: '-wi-ao----', vg_attr: 'wz--n-' },
  }));
  const run: RunTool = (_, args) => {
    const target = args.at(-1)!;
    if (args[0] === 'lvs') return Promise.resolve(reply({ report: [{ lv: volumes }] }));
    if (target === refused) return Promise.resolve({ kind: 'failed', text: 'no space' });
    if (args[0] === 'lvcreate') there.add(`vg0/${args[args.indexOf('--name') + 1]!}`);
    if (args[0] === 'lvremove') there.delete(target);
    return Promise.resolve(DONE);
  };
  const devices: Readonly<Record<string, string>> = { '/dev/vg0/a': '254:0', '/dev/vg0/b': '254:1' };
  return {
    driver: new LvmDriver({}, run, (path) => Promise.resolve(devices[path] ?? '')),
    disks: Object.keys(devices).map((path, i) => disk(`hd${i}`, path, 'raw')),
    snapshots: () => [...there],
    refuseLast: () => (refused = 'vg0/b'),
    wayBack: 'lab',
  };
}

function rbd(): DiskDriverUnderTest {
  const there = new Set<string>();
  let refused = '';
  const run: RunTool = (_, args) => {
    const image = args.at(-1)!;
    if (args.includes('info')) return Promise.resolve(reply({ id: image }));
    if (args.includes('status')) return Promise.resolve(reply({ watchers: [{ address: '10.0.0.5:0/1' }] }));
    if (image === refused) return Promise.resolve({ kind: 'failed', text: '(2) No such file or directory' });
    const snapshot = `${image} ${args.find((arg) => arg.startsWith('--snap=')) ?? ''}`;
    if (args.includes('create')) there.add(snapshot);
    if (args.includes('rm')) there.delete(snapshot);
    return Promise.resolve(DONE);
  };
  const path = (image: string): string =>
    `json:${JSON.stringify({ driver: 'raw', file: { driver: 'rbd', pool: 'vms', image } })}`;
  return {
    driver: new RbdDriver(run, () => ['10.0.0.5']),
    disks: ['a', 'b'].map((image) => disk(image, path(image), 'raw')),
    snapshots: () => [...there],
    refuseLast: () => (refused = '--image=b'),
    wayBack: 'here',
  };
}

function zfs(): DiskDriverUnderTest {
  const there = new Set<string>();
  let refused = '';
  const run: RunTool = (_, [command, ...names]) => {
    if (command === 'version') return Promise.resolve({ kind: 'done', stdout: 'zfs-kmod-2.1.11-1\n' });
    if (command === 'list') return Promise.resolve({ kind: 'done', stdout: `${names.at(-1)!}\t7\n` });
    if (names.some((name) => name.startsWith(`${refused}@`)))
      return Promise.resolve({ kind: 'failed', text: 'out of space' });
    for (const name of names) if (command === 'snapshot') there.add(name);
    for (const name of names) if (command === 'destroy') there.delete(name);
    return Promise.resolve(DONE);
  };
  const volumes: Readonly<Record<string, string>> = { '/dev/zd0': 'tank/a', '/dev/zd16': 'tank/b' };
  const devices = {
    volumeNameOf: (path: string) => Promise.resolve(volumes[path]),
    flush: () => Promise.resolve(),
    userOf: () => Promise.resolve(undefined),
    forgetCachedPages: () => Promise.resolve(),
  };
  return {
    driver: new ZfsDriver({ run, devices, allowsUnproven: true }),
    disks: Object.keys(volumes).map((path, i) => disk(`hd${i}`, path, 'raw')),
    snapshots: () => [...there],
    refuseLast: () => (refused = 'tank/b'),
    wayBack: 'none',
  };
}

function copy(): DiskDriverUnderTest {
  const folder = mkdtempSync(join(dir, 'copy-'));
  const paths = ['a', 'b'].map((name) => join(folder, name));
  for (const path of paths) writeFileSync(path, 'variables');
  return {
    driver: copyDriver.open({ cwd: '/' }),
    disks: paths.map((path, i) => disk(`pflash${i}`, path, 'raw')),
    snapshots: () => readdirSync(folder).filter((name) => name.includes('.cairn-')),
    refuseLast: () => rmSync(paths[1]!),
    wayBack: 'here',
  };
}

const SUBJECTS = [
  [copyDriver, copy],
  [internalDriver, () => qemu(internalDriver)],
  [externalDriver, () => qemu(externalDriver)],
  [lvmDriver, lvm],
  [rbdDriver, rbd],
  [zfsDriver, zfs],
] as const;
for (const [kind, open] of SUBJECTS) describeDiskDriver(kind, open);

describe('a driver of images', () => {
  it.each([internalDriver, externalDriver])(
    'offers and takes nothing where nobody can: $name',
    async (kind) => {
      const driver = kind.open({ cwd: '/' });
      const image = disk('hd0', '/srv/web.qcow2', 'qcow2');
      expect(await driver.describe([image])).toEqual([image]);
      await expect(driver.snapshot('c1', [image])).rejects.toMatchObject({ code: 'DISK_SNAPSHOT_FAILED' });
    },
  );
});

describe('the registration', () => {
  it('has one driver of each name, and a run of the contract suite for each of those that are tested here', () => {
    const names = DISK_DRIVERS.map(({ name }) => name);
    expect(new Set(names).size).toBe(names.length);
    expect(names).toEqual(expect.arrayContaining(SUBJECTS.map(([{ name }]) => name)));
  });
});
