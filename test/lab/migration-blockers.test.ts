/**
 * A machine that QEMU itself would not migrate is never asked for its state. `xen-save-devices-state` would kill
 * some of these, and give a state of others that cannot be restored.
 */

import { mkdirSync, readFileSync, readdirSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';

import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';

import {
  hypervisors,
  openBackend,
  openSession,
  Repository,
  type CheckpointSession,
} from '../../src/index.js';
import { startVirtiofsd } from './devices/setups.js';
import { LabMachine } from './machine.js';
import { cairn, runCairn } from './support/cairn-cli.js';
import { scratchDir, whyNo9pGuest, type QemuVersion } from './support/lab-files.js';

const no9p = whyNo9pGuest();
if (no9p !== '') process.stderr.write(`skipped: a mounted 9p share: ${no9p}\n`);
const describeWith9p = no9p === '' ? describe : describe.skip;

const MEMORY_MIB = 128;
const DISK = ['-blockdev', 'driver=null-co,node-name=disk0,size=16777216,read-zeroes=on'];

interface Case {
  readonly name: string;
  readonly args: (dir: string) => readonly string[];
  /** QEMU's reason, or Cairn's where QEMU finds out only while it saves. */
  readonly reason: RegExp;
  readonly only?: QemuVersion;
  readonly startBackEnd?: (dir: string) => Promise<{ end(): void }>;
}

const CASES: readonly Case[] = [
  {
    name: 'an NVMe disk',
    args: () => [...DISK, '-device', 'nvme,serial=1,drive=disk0'],
    reason: /nvme/,
  },
  {
    name: 'amd-iommu',
    args: () => ['-machine', 'q35', '-device', 'amd-iommu'],
    reason: /amd-iommu/,
    // The lab's guest does not get past its first process with it on 10.0, which lists it as well.
    only: '7.2',
  },
  {
    name: 'a virtiofs share',
    args: (dir) => [
      ...['-object', `memory-backend-memfd,id=mem0,size=${MEMORY_MIB}M,share=on`],
      ...['-machine', 'memory-backend=mem0'],
      ...['-chardev', `socket,id=fs0,path=${join(dir, 'back.sock')}`],
      ...['-device', 'vhost-user-fs-pci,chardev=fs0,tag=share'],
    ],
    reason: /vhost-user-fs/,
    startBackEnd: startVirtiofsd,
  },
  ...['pci-serial-2x', 'vmbus-bridge', 'isa-cirrus-vga'].map((device) => ({
    name: `${device}, against which QEMU has nothing to say before it dies of it`,
    args: () => ['-device', device],
    reason: new RegExp(`QEMU dies .* ${device}`),
  })),
  {
    name: 'a disk by usb-uas',
    args: () => [
      ...[...DISK, '-device', 'qemu-xhci', '-device', 'usb-uas,id=uas'],
      ...['-device', 'scsi-hd,bus=uas.0,drive=disk0'],
    ],
    reason: /uas/,
  },
  {
    name: 'virtio-crypto',
    args: () => [
      ...['-object', 'cryptodev-backend-builtin,id=crypto0'],
      ...['-device', 'virtio-crypto-pci,cryptodev=crypto0'],
    ],
    reason: /virtio-crypto/,
  },
  {
    name: 'shared memory of another VM (ivshmem)',
    args: () => [
      ...['-object', 'memory-backend-memfd,id=shm0,size=1M,share=on'],
      ...['-device', 'ivshmem-plain,memdev=shm0'],
    ],
    reason: /ivshmem/,
  },
];

const alive: LabMachine[] = [];
afterEach(async () => {
  for (const machine of alive.splice(0)) await machine.destroy();
});

async function started(dir: string, qemu: QemuVersion, extraArgs: readonly string[]): Promise<LabMachine> {
  const machine = await LabMachine.start({
    ...{ name: 'blocked', dir, qemu, memoryMib: MEMORY_MIB, devices: [], extraArgs },
  });
  alive.push(machine);
  return machine;
}

/** By doctor and by each way of capture, with QEMU's reason. */
async function expectRefused(machine: LabMachine, dir: string, reason: RegExp): Promise<void> {
  const doctor = await runCairn(['doctor', machine.address], { dir });
  expect(doctor.exitCode).toBe(22);
  expect(doctor.messages.at(-1)?.hazards).toContainEqual(
    expect.objectContaining({
      ...{ code: 'MIGRATION_BLOCKED', effect: 'refuse', remedy: expect.any(String) as unknown },
      text: expect.stringMatching(reason) as unknown,
    }),
  );
  for (const tracker of ['auto', 'qmp-stream']) {
    const args = ['checkpoint', machine.address, '--repo', join(dir, 'repo'), '--memory-only'];
    const refused = await runCairn([...args, '--tracker', tracker], { dir });
    expect(refused.exitCode).toBe(22);
    expect(refused.messages.at(-1)).toMatchObject({
      code: 'VM_UNSUPPORTED',
      message: expect.stringMatching(reason) as unknown,
      detail: { hazard: 'MIGRATION_BLOCKED' },
    });
  }
}

/** It counts on, and never stood still; no tracker has anything in its QEMU. */
async function expectUntouched(machine: LabMachine): Promise<void> {
  await machine.waitForProgress();
  expect(await machine.qmp.status()).toBe('running');
  expect(machine.qmp.events).not.toContain('STOP');
  expect(isArmed(machine)).toBe(false);
}

/** Whether QEMU has been given what `pagemap-scan` tracks by. */
function isArmed({ pid }: LabMachine): boolean {
  const folder = `/proc/${pid}/fd`;
  return readdirSync(folder).some((name) => {
    try {
      return readlinkSync(join(folder, name)).includes('userfaultfd');
    } catch {
      // Closed meanwhile.
      return false;
    }
  });
}

describe.each<QemuVersion>(['7.2', '10.0'])('QEMU %s', (version) => {
  it.each(CASES.filter(({ only }) => only === undefined || only === version))(
    '$name is refused at once, and the guest counts on',
    async ({ args, reason, startBackEnd }) => {
      const dir = scratchDir('blocked');
      const backEnd = await startBackEnd?.(dir);
      try {
        const machine = await started(dir, version, args(dir));
        await cairn(['init', '--repo', join(dir, 'repo')], { dir });
        await expectRefused(machine, dir, reason);
        await expectUntouched(machine);
      } finally {
        backEnd?.end();
      }
    },
  );

  it('a guest with none of these is taken, with every tracker', async () => {
    const dir = scratchDir('blocked');
    const machine = await started(dir, version, [...DISK, '-device', 'virtio-blk-pci,drive=disk0']);
    await cairn(['init', '--repo', join(dir, 'repo')], { dir });
    for (const tracker of ['auto', 'compare', 'qmp-stream']) {
      const args = ['checkpoint', machine.address, '--repo', join(dir, 'repo'), '--memory-only'];
      await cairn([...args, '--tracker', tracker], { dir });
    }
    await machine.waitForProgress();
  });

  describeWith9p('a guest with a 9p share', () => {
    const MOUNT = 'mount -t 9p -o trans=virtio,version=9p2000.L share /mnt';
    // QEMU calls 9p VirtFS.
    const REASON = /migration is disabled when VirtFS export path '[^']*\/share' is mounted in the guest/i;
    let dir: string;
    let machine: LabMachine;
    beforeAll(async () => {
      dir = scratchDir('share');
      machine = await LabMachine.start({
        ...{ name: 'share', dir, qemu: version, memoryMib: MEMORY_MIB, devices: ['share'] },
      });
      await cairn(['init', '--repo', join(dir, 'repo')], { dir });
    });
    afterAll(() => machine.destroy());

    it('is refused while it has it mounted, and works on in it', async () => {
      await machine.guest(MOUNT);
      await expectRefused(machine, dir, REASON);
      await expectUntouched(machine);
      await machine.guest('echo still here >/mnt/file');
      expect(readFileSync(join(dir, 'share/file'), 'utf8')).toBe('still here\n');
    });

    it('is taken once it has unmounted it', async () => {
      await machine.guest('umount /mnt');
      const args = ['checkpoint', machine.address, '--repo', join(dir, 'repo'), '--memory-only'];
      for (const tracker of ['qmp-stream', 'auto']) await cairn([...args, '--tracker', tracker], { dir });
      expect(isArmed(machine)).toBe(true);
      await machine.waitForProgress();
    });
  });

  describe.each(['auto', 'qmp-stream'])('a session with tracker %s', (tracker) => {
    let dir: string;
    let machine: LabMachine;
    let session: CheckpointSession;
    beforeAll(async () => {
      dir = scratchDir('blocked');
      machine = await LabMachine.start({
        ...{ name: 'plugged', dir, qemu: version, memoryMib: MEMORY_MIB, devices: [] },
        extraArgs: DISK,
      });
      const repository = await Repository.init(openBackend(join(dir, 'repo')));
      mkdirSync(join(dir, 'runtime'), { mode: 0o700 });
      session = await openSession(hypervisors(), machine.address, {
        ...{ repository, tracker, memoryOnly: true, runtimeDir: join(dir, 'runtime') },
      });
    });
    afterAll(async () => {
      await session.close();
      await machine.destroy();
    });

    it('takes a checkpoint, refuses one once an NVMe disk was plugged in, and takes the next after its unplugging', async () => {
      await session.checkpoint();
      await machine.qmp.command('device_add', { driver: 'nvme', id: 'nvme0', serial: '1', drive: 'disk0' });
      const before = machine.qmp.events.length;
      await expect(session.checkpoint()).rejects.toMatchObject({
        code: 'VM_UNSUPPORTED',
        message: expect.stringContaining('nvme') as unknown,
      });
      expect(machine.qmp.events.slice(before)).not.toContain('STOP');
      await machine.waitForProgress();
      await machine.qmp.command('device_del', { id: 'nvme0' });
      for (const until = Date.now() + 60_000; !machine.qmp.events.includes('DEVICE_DELETED');) {
        if (Date.now() > until) throw new Error('the guest does not let go of the disk');
        await machine.waitForProgress();
      }
      await session.checkpoint();
      await machine.waitForProgress();
    });
  });
});
