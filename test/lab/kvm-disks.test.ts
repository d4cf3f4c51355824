import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { attachKvm } from '../../adapters/kvm/attach.js';
import type { KvmVm } from '../../adapters/kvm/kvm-vm.js';
import { externalSnapshot, internalSnapshot } from '../../adapters/disks/qcow2/qcow2-records.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';
import { LabMachine } from './machine.js';

function snapshotsIn(path: string): string {
  return execFileSync('qemu-img', ['snapshot', '-U', '-l', path], { encoding: 'latin1' });
}

describe('disks in the pause', () => {
  let machine: LabMachine;
  let runtimeDir: string;
  let vm: KvmVm;
  let nodeDisk: string;
  beforeAll(async () => {
    runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-disks-'));
    nodeDisk = join(runtimeDir, 'node.qcow2');
    const rawDisk = join(runtimeDir, 'raw.img');
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', nodeDisk, '64M']);
    execFileSync('qemu-img', ['create', '-q', '-f', 'raw', rawDisk, '64M']);
    machine = await LabMachine.start({
      name: 'disks',
      devices: ['disk'],
      extraArgs: [
        ...['-blockdev', `driver=qcow2,node-name=node1,file.driver=file,file.filename=${nodeDisk}`],
        ...['-device', 'virtio-blk-pci,drive=node1'],
        ...['-drive', `file=${rawDisk},if=none,id=raw,format=raw`, '-device', 'virtio-blk-pci,drive=raw'],
      ],
    });
    await machine.guest('lab disk');
    vm = await attachKvm(machine.address, { runtimeDir });
  });
  afterAll(async () => {
    await vm.close();
    await machine.destroy();
    rmSync(runtimeDir, { recursive: true });
  });

  async function qcow2(): Promise<readonly VmDisk[]> {
    return (await vm.disks.list()).filter(({ format }) => format === 'qcow2');
  }

  it('are listed whether named by -drive or -blockdev', async () => {
    expect(await vm.disks.list()).toEqual([
      expect.objectContaining({
        id: 'disk0',
        format: 'qcow2',
        writable: true,
        path: join(machine.dir, 'disk.qcow2'),
        virtualSizeBytes: 256 << 20,
        snapshotModes: ['internal', 'external'],
      }),
      expect.objectContaining({ id: 'raw', format: 'raw', snapshotModes: [] }),
      expect.objectContaining({ id: 'node1', path: nodeDisk, virtualSizeBytes: 64 << 20 }),
    ]);
  });

  it('get internal snapshots together, which can be dropped', async () => {
    await vm.runState.pause();
    const snapshots = await vm.disks.snapshot('first', await qcow2(), 'internal');
    await vm.runState.resume();
    expect(snapshots).toHaveLength(2);
    for (const { path, snapshotName } of snapshots.map(internalSnapshot))
      expect(snapshotsIn(path)).toContain(snapshotName);
    await vm.disks.drop(snapshots);
    for (const { path, snapshotName } of snapshots.map(internalSnapshot))
      expect(snapshotsIn(path)).not.toContain(snapshotName);
  });

  it('get none at all when one of them cannot have one', async () => {
    const all = await vm.disks.list();
    await vm.runState.pause();
    for (const mode of ['internal', 'external'] as const) {
      const disks =
        mode === 'internal' ? all : [...(await qcow2()), { ...all[0]!, id: 'gone', path: '/nowhere/x' }];
      await expect(vm.disks.snapshot('second', disks, mode)).rejects.toMatchObject({
        code: 'DISK_SNAPSHOT_FAILED',
      });
    }
    await vm.runState.resume();
    for (const { path } of await qcow2()) expect(snapshotsIn(path)).not.toContain('second');
    expect(
      [...readdirSync(machine.dir), ...readdirSync(runtimeDir)].filter((name) => name.includes('second')),
    ).toEqual([]);
  });

  it('get overlays beside their images, and go on in them', async () => {
    await vm.runState.pause();
    const recorded = await vm.disks.snapshot('third', await qcow2(), 'external');
    await vm.runState.resume();
    const snapshots = recorded.map(externalSnapshot);
    for (const { path, overlayPath } of snapshots) {
      expect(existsSync(overlayPath)).toBe(true);
      const backing = execFileSync('qemu-img', ['info', '-U', '--output=json', overlayPath], {
        encoding: 'utf8',
      });
      expect(JSON.parse(backing)).toMatchObject({ 'full-backing-filename': path });
    }
    expect((await qcow2()).map(({ path }) => path)).toEqual(snapshots.map(({ overlayPath }) => overlayPath));
    await machine.waitForProgress();
    // What is left behind is named: overlays are in use.
    await expect(vm.disks.drop(recorded)).rejects.toMatchObject({ code: 'DISK_SNAPSHOT_FAILED' });
    // And the next one goes on from there.
    await vm.runState.pause();
    const next = (await vm.disks.snapshot('fourth', await qcow2(), 'external')).map(externalSnapshot);
    await vm.runState.resume();
    expect(next.map(({ path }) => path)).toEqual(snapshots.map(({ overlayPath }) => overlayPath));
    expect(next.map(({ overlayPath }) => overlayPath.includes('third'))).toEqual([false, false]);
    await machine.waitForProgress();
  });
});
