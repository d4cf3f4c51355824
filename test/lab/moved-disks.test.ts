/**
 * Machines that are not what their command line says any more: disks that moved, media that were changed, devices that
 * were plugged. What comes back is the machine of the checkpoint, or the checkpoint is refused.
 */

import { execFileSync } from 'node:child_process';
import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, describe, expect, it } from '@jest/globals';

import { LabMachine, type LabMachineOptions } from './machine.js';
import { cairn, runCairn, type CliOptions } from './support/cairn-cli.js';
import { scratchDir } from './support/lab-files.js';

const MEMORY_MIB = 96;

let machine: LabMachine;
let options: CliOptions & { readonly repo: string };
afterEach(() => machine.destroy());

async function start(more: Partial<LabMachineOptions>): Promise<void> {
  machine = await LabMachine.start({ name: 'moved', memoryMib: MEMORY_MIB, devices: [], ...more });
  options = { dir: machine.dir, repo: join(machine.dir, 'repo') };
  await cairn(['init', '--repo', options.repo], options);
}

const take = (...more: string[]): string[] => [
  'checkpoint',
  machine.address,
  '--repo',
  options.repo,
  ...more,
];

/** Files in the drives of QEMU, without the folder. */
async function files(): Promise<readonly string[]> {
  const devices = (await machine.qmp.command('query-block')) as readonly {
    readonly inserted?: { readonly image: { readonly filename: string } };
  }[];
  return devices.map(({ inserted }) => inserted?.image.filename.replace(`${machine.dir}/`, '') ?? 'empty');
}

async function restored(): Promise<void> {
  await machine.kill();
  const { pid } = await cairn(['restore', 'latest', '--repo', options.repo], options);
  machine = await LabMachine.adopt('moved', machine.dir, Number(pid));
  await machine.waitForProgress();
}

function qcow2(dir: string, name: string): string {
  const path = join(dir, name);
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', path, '64M']);
  return path;
}

async function jobIsReady(): Promise<void> {
  for (let i = 0; i < 600; i++) {
    const [job] = (await machine.qmp.command('query-block-jobs')) as readonly { readonly ready: boolean }[];
    if (job?.ready === true) return;
    await sleep(50);
  }
  throw new Error('the job does not become ready');
}

/** All that moves a disk to another file while the VM runs. `own` is what Cairn itself does. */
const MOVES: readonly (readonly [string, (dir: string) => Promise<void>])[] = [
  [
    'a live snapshot by another tool',
    async (dir) => {
      const overlay = { device: 'd0', 'snapshot-file': join(dir, 'new.qcow2'), format: 'qcow2' };
      await machine.qmp.command('blockdev-snapshot-sync', overlay);
    },
  ],
  [
    'a mirror with pivot',
    async (dir) => {
      const target = { device: 'd0', target: join(dir, 'new.qcow2'), format: 'qcow2', sync: 'full' };
      await machine.qmp.command('drive-mirror', { 'job-id': 'j', ...target });
      await jobIsReady();
      await machine.qmp.command('block-job-complete', { device: 'j' });
      while ((await files())[0] !== 'new.qcow2') await sleep(50);
    },
  ],
  [
    'an external snapshot by Cairn',
    async () => {
      await cairn(take('--disks', 'external'), options);
    },
  ],
];

describe('a disk that has moved', () => {
  const write = (text: string): Promise<string> =>
    machine.guest(`echo ${text} | dd of=/dev/vda bs=512 count=1 conv=sync oflag=direct 2>/dev/null; sync`);
  const read = (): Promise<string> =>
    machine.guest('dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | head -c 20');

  it.each(MOVES.flatMap(([how, move]) => ['internal', 'external'].map((mode) => [how, mode, move] as const)))(
    'by %s comes back as it was, with %s snapshots',
    async (_how, mode, move) => {
      const dir = scratchDir('moved');
      const drive = `file=${qcow2(dir, 'old.qcow2')},if=none,id=d0,format=qcow2`;
      await start({ dir, extraArgs: ['-drive', drive, '-device', 'virtio-blk-pci,drive=d0'] });
      await write('1-before');
      await move(dir);
      await write('2-at-the-checkpoint');
      await cairn(take('--disks', mode), options);
      const [atCheckpoint] = await files();
      await write('3-after');
      await restored();
      expect(await read()).toContain('2-at-the-checkpoint');
      // With external snapshots it is an overlay of its own, on what was frozen.
      if (mode === 'internal') expect(await files()).toEqual([atCheckpoint]);
    },
  );

  it('back to the image below its own, by a commit with pivot, comes back as it was', async () => {
    const dir = scratchDir('moved');
    const base = qcow2(dir, 'base.qcow2');
    const top = join(dir, 'top.qcow2');
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', top]);
    const drive = `file=${top},if=none,id=d0,format=qcow2`;
    await start({ dir, extraArgs: ['-drive', drive, '-device', 'virtio-blk-pci,drive=d0'] });
    await write('1-before');
    await machine.qmp.command('block-commit', { 'job-id': 'j', device: 'd0' });
    await jobIsReady();
    await machine.qmp.command('block-job-complete', { device: 'j' });
    while ((await files())[0] !== 'base.qcow2') await sleep(50);
    await write('2-at-the-checkpoint');
    await cairn(take(), options);
    await write('3-after');
    await restored();
    expect(await files()).toEqual(['base.qcow2']);
    expect(await read()).toContain('2-at-the-checkpoint');
  });
});

describe('a machine whose folder has moved', () => {
  it.each(['internal', 'external'])('comes back where it lies now, with %s snapshots', async (mode) => {
    const dir = scratchDir('moved');
    const drive = `file=${qcow2(dir, 'a,b.qcow2').replaceAll(',', ',,')},if=none,id=d0,format=qcow2`;
    await start({ dir, extraArgs: ['-drive', drive, '-device', 'virtio-blk-pci,drive=d0'] });
    await machine.guest('echo at-the-checkpoint | dd of=/dev/vda bs=512 count=1 conv=sync oflag=direct');
    await cairn(take('--disks', mode), options);
    await machine.guest('echo after | dd of=/dev/vda bs=512 count=1 conv=sync oflag=direct');
    await machine.kill();
    const now = `${dir}-now`;
    renameSync(dir, now);
    try {
      const repo = join(now, 'repo');
      const inNow = { ...options, dir: now };
      const refused = await runCairn(['restore', 'latest', '--repo', repo], inNow);
      expect(refused.messages.at(-1)).toMatchObject({
        code: 'RESTORE_FAILED',
        message: expect.stringContaining(dir),
        hint: expect.stringContaining('--set-path'),
      });
      const move = `${dir}=${now}`;
      const { pid } = await cairn(['restore', 'latest', '--repo', repo, '--set-path', move], inNow);
      machine = await LabMachine.adopt('moved', now, Number(pid));
      await machine.waitForProgress();
      expect(await machine.guest('dd if=/dev/vda bs=512 count=1 iflag=direct | head -c 17')).toContain(
        'at-the-checkpoint',
      );
    } finally {
      // So that what is left is removed by the name that it had.
      await machine.kill();
      renameSync(now, dir);
    }
  });
});

describe('a medium of the CD-ROM drive', () => {
  async function startWithCd(): Promise<void> {
    const dir = scratchDir('moved');
    for (const name of ['a.iso', 'b.iso']) writeFileSync(join(dir, name), Buffer.alloc(512 << 10, name));
    const drive = `file=${join(dir, 'a.iso')},if=none,id=cd0,media=cdrom,readonly=on,format=raw`;
    await start({ dir, extraArgs: ['-drive', drive, '-device', 'ide-cd,drive=cd0,id=cdrom0'] });
  }

  it('that was changed is the one of the checkpoint', async () => {
    await startWithCd();
    const medium = { id: 'cdrom0', filename: join(machine.dir, 'b.iso'), format: 'raw' };
    await machine.qmp.command('blockdev-change-medium', medium);
    await cairn(take(), options);
    await restored();
    expect(await files()).toEqual(['b.iso']);
  });

  it('that was ejected is not there', async () => {
    await startWithCd();
    await machine.qmp.command('eject', { id: 'cdrom0', force: true });
    await cairn(take(), options);
    await restored();
    expect(await files()).toEqual(['empty']);
  });
});

describe('a checkpoint is refused, before the VM is paused and by doctor as well,', () => {
  async function expectRefused(text: string): Promise<void> {
    const { exitCode, messages } = await runCairn(take(), options);
    expect({ exitCode, error: messages.at(-1) }).toMatchObject({
      exitCode: 22,
      error: {
        code: 'VM_UNSUPPORTED',
        message: expect.stringContaining(text),
        detail: { hazard: 'MACHINE_CHANGED' },
      },
    });
    const doctor = await runCairn(['doctor', machine.address], options);
    expect(doctor.messages.at(-1)?.hazards).toContainEqual(
      expect.objectContaining({ code: 'MACHINE_CHANGED', effect: 'refuse' }),
    );
    await machine.waitForProgress();
  }

  it('when a disk was plugged in', async () => {
    await start({});
    const file = { driver: 'file', filename: qcow2(machine.dir, 'added.qcow2') };
    await machine.qmp.command('blockdev-add', { driver: 'qcow2', 'node-name': 'added', file });
    await machine.qmp.command('device_add', { driver: 'virtio-blk-pci', drive: 'added', id: 'disk9' });
    await expectRefused('virtio-blk-pci (disk9) was plugged in');
  });

  it('when memory was plugged in', async () => {
    await start({ extraArgs: ['-m', `${MEMORY_MIB},slots=2,maxmem=1G`] });
    const memory = { 'qom-type': 'memory-backend-ram', id: 'mem1', size: 128 << 20 };
    await machine.qmp.command('object-add', memory);
    await machine.qmp.command('device_add', { driver: 'pc-dimm', id: 'dimm1', memdev: 'mem1' });
    await expectRefused('pc-dimm (dimm1) was plugged in');
  });

  it('when a device was unplugged', async () => {
    await start({ extraArgs: ['-device', 'virtio-rng-pci,id=rng7'] });
    await cairn(take(), options);
    await machine.qmp.command('device_del', { id: 'rng7' });
    for (let i = 0; i < 200; i++) {
      const devices = (await machine.qmp.command('qom-list', {
        path: '/machine/peripheral',
      })) as readonly { readonly name: string }[];
      if (!devices.some(({ name }) => name === 'rng7')) break;
      await sleep(50);
    }
    await expectRefused('rng7 was unplugged');
  });
});
