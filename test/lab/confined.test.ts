/**
 * QEMUs in other surroundings: daemons with relative paths, users and roots of their own, images that are elsewhere for
 * QEMU than for Cairn. They come back as they were, or the checkpoint is refused.
 */

import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
} from 'node:fs';
import { join } from 'node:path';

import { afterEach, describe, expect, it } from '@jest/globals';

import { LabMachine, type LabMachineOptions } from './machine.js';
import { cairn, runCairn, type CliOptions } from './support/cairn-cli.js';
import { scratchDir, type QemuVersion } from './support/lab-files.js';

const MEMORY_MIB = 96;

let machine: LabMachine;
let options: CliOptions & { readonly repo: string };
afterEach(() => machine.destroy());

async function start(more: Partial<LabMachineOptions> & { readonly dir: string }): Promise<void> {
  machine = await LabMachine.start({ name: 'confined', memoryMib: MEMORY_MIB, devices: [], ...more });
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

async function restored(): Promise<void> {
  await machine.kill();
  const { pid } = await cairn(['restore', 'latest', '--repo', options.repo], options);
  machine = await LabMachine.adopt('confined', machine.dir, Number(pid));
  await machine.waitForProgress();
}

function qcow2(path: string): void {
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', path, '64M']);
}

const drive = (path: string): readonly string[] => [
  ...['-drive', `file=${path},if=none,id=d0,format=qcow2`, '-device', 'virtio-blk-pci,drive=d0'],
];
const write = (text: string): Promise<string> =>
  machine.guest(`echo ${text} | dd of=/dev/vda bs=512 count=1 conv=sync oflag=direct 2>/dev/null`);
const read = async (): Promise<string> =>
  (await machine.guest('dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | head -c 6')).trim();

describe('a QEMU that became a daemon, with a relative path of its disk', () => {
  it.each([['internal'], ['external']])('comes back with it (%s snapshots)', async (mode) => {
    const dir = scratchDir('daemon');
    mkdirSync(join(dir, 'disks'));
    qcow2(join(dir, 'disks/web.qcow2'));
    await start({ dir, daemon: true, extraArgs: drive('disks/web.qcow2') });
    expect(readlinkSync(`/proc/${machine.pid}/cwd`)).toBe('/');
    const inRoot = readdirSync('/');

    await write('before');
    await cairn(take('--disks', mode), options);
    await write('behind');
    expect(readdirSync('/')).toEqual(inRoot);
    for (const image of readdirSync(join(dir, 'disks'))) {
      const path = join(dir, 'disks', image);
      const chain = execFileSync('qemu-img', ['info', '-U', '--backing-chain', path], { cwd: '/' });
      expect(chain.toString()).toContain('web.qcow2');
    }

    await restored();
    expect(await read()).toBe('before');
  });

  it('goes on when its chain has two overlays', async () => {
    const dir = scratchDir('daemon');
    mkdirSync(join(dir, 'disks'));
    qcow2(join(dir, 'disks/web.qcow2'));
    await start({ dir, daemon: true, extraArgs: drive('disks/web.qcow2') });
    await cairn(take('--disks', 'external'), options);
    await write('second');
    await cairn(take('--disks', 'external'), options);
    await write('behind');
    await restored();
    expect(await read()).toBe('second');
  });
});

describe('a QEMU that has given up rights or its view of the files', () => {
  const CASES: readonly (readonly [string, QemuVersion, (jail: string) => readonly string[]])[] = [
    ['-chroot and -runas', '7.2', (jail) => ['-chroot', jail, '-runas', 'nobody']],
    ['-run-with', '10.0', (jail) => ['-run-with', `chroot=${jail},user=nobody`]],
    [
      '-sandbox',
      '7.2',
      () => ['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
    ],
  ];
  const confinement = (pid: number): readonly string[] => [
    readlinkSync(`/proc/${pid}/root`),
    ...readFileSync(`/proc/${pid}/status`, 'latin1')
      .split('\n')
      .filter((line) => /^(?:Uid|Gid|Seccomp):/.test(line)),
  ];

  it.each(CASES)('comes back as confined: %s of QEMU %s', async (_, qemu, args) => {
    const dir = scratchDir('confined');
    chmodSync(dir, 0o755);
    const jail = join(dir, 'jail');
    mkdirSync(jail);
    await start({ dir, qemu, extraArgs: args(jail) });
    const before = confinement(machine.pid);
    await cairn(take(), options);
    await restored();
    expect(confinement(machine.pid)).toEqual(before);
  });
});

describe('an image that is another file for Cairn than for QEMU', () => {
  async function isRefused(): Promise<void> {
    const { exitCode, messages } = await runCairn(take(), options);
    expect(exitCode).not.toBe(0);
    expect(messages).toContainEqual(
      expect.objectContaining({ code: 'VM_UNSUPPORTED', detail: { hazard: 'IMAGES_ELSEWHERE' } }),
    );
    const doctor = await runCairn(['doctor', machine.address], options);
    expect(doctor.messages.at(-1)?.hazards).toContainEqual(
      expect.objectContaining({ code: 'IMAGES_ELSEWHERE', effect: 'refuse' }),
    );
    await machine.waitForProgress();
  }

  it('is refused when somebody has moved it away', async () => {
    const dir = scratchDir('elsewhere');
    qcow2(join(dir, 'web.qcow2'));
    await start({ dir, extraArgs: drive(join(dir, 'web.qcow2')) });
    renameSync(join(dir, 'web.qcow2'), join(dir, 'old.qcow2'));
    await isRefused();
    qcow2(join(dir, 'web.qcow2'));
    await isRefused();

    renameSync(join(dir, 'old.qcow2'), join(dir, 'web.qcow2'));
    await cairn(take(), options);
  });

  it('is refused when QEMU lives in a mount namespace of its own', async () => {
    const dir = scratchDir('elsewhere');
    mkdirSync(join(dir, 'inside'));
    qcow2(join(dir, 'web.qcow2'));
    qcow2(join(dir, 'inside/web.qcow2'));
    const bind = `mount --bind ${dir}/inside/web.qcow2 ${dir}/web.qcow2 && exec "$0" "$@"`;
    await start({
      dir,
      startedBy: ['unshare', '--mount', 'sh', '-c', bind],
      extraArgs: drive(join(dir, 'web.qcow2')),
    });
    await isRefused();
    expect(existsSync(join(dir, 'web.qcow2'))).toBe(true);
  });
});
