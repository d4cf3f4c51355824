/** Disks whose images no snapshot can be taken of rightly: said before the VM is paused, and nothing is made. */

import { execFileSync, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { cairn, runCairn, type CliOptions } from './support/cairn-cli.js';
import { scratchDir } from './support/lab-files.js';

let machine: LabMachine;
let server: ChildProcess | undefined;
let options: CliOptions & { readonly repo: string };
afterEach(async () => {
  await machine.destroy();
  if (server === undefined) return;
  server.kill('SIGKILL');
  await once(server, 'exit');
  server = undefined;
});

async function start(dir: string, extraArgs: readonly string[]): Promise<void> {
  machine = await LabMachine.start({ name: 'images', dir, memoryMib: 96, devices: [], extraArgs });
  options = { dir, repo: join(dir, 'repo') };
  await cairn(['init', '--repo', options.repo], options);
}

async function isRefused(text: string): Promise<void> {
  const before = readdirSync(machine.dir).filter((name) => name.endsWith('.qcow2'));
  for (const mode of ['auto', 'internal', 'external']) {
    const args = ['checkpoint', machine.address, '--repo', options.repo, '--disks', mode];
    const { exitCode, messages } = await runCairn(args, options);
    expect({ exitCode, error: messages.at(-1) }).toMatchObject({
      exitCode: 22,
      error: { code: 'DISK_NOT_COVERED', message: expect.stringContaining(text) },
    });
  }
  expect(readdirSync(machine.dir).filter((name) => name.endsWith('.qcow2'))).toEqual(before);
  const doctor = await runCairn(['doctor', machine.address], options);
  expect(doctor.messages.at(-1)?.disk_problem).toContain(text);
  await machine.waitForProgress();
  await cairn(['checkpoint', machine.address, '--repo', options.repo, '--memory-only'], options);
}

function isMade(create: readonly string[]): boolean {
  return spawnSync('qemu-img', create, { stdio: 'ignore' }).status === 0;
}

describe('a disk that no snapshot can be taken of rightly', () => {
  it('is an encrypted one: an overlay of it would lie there in the clear', async () => {
    const dir = scratchDir('luks');
    const image = join(dir, 'disk.qcow2');
    const secret = ['--object', 'secret,id=key,data=hunter2'];
    const luks = 'encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10';
    const create = ['create', '-q', ...secret, '-f', 'qcow2', '-o', luks, image, '64M'];
    // It times itself by a clock of a few milliseconds, and gives up when that stood still ("accurate CPU usage").
    for (let i = 0; i < 10 && !isMade(create); i++) rmSync(image, { force: true });
    expect(existsSync(image)).toBe(true);
    const drive = `file=${image},if=none,id=d0,format=qcow2,encrypt.key-secret=key`;
    await start(dir, [
      '-object',
      'secret,id=key,data=hunter2',
      '-drive',
      drive,
      '-device',
      'virtio-blk-pci,drive=d0',
    ]);
    await isRefused('encrypted');
  });

  it('is one whose changes end with QEMU (-snapshot)', async () => {
    const dir = scratchDir('snapshot');
    const image = join(dir, 'disk.qcow2');
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', image, '64M']);
    await start(dir, ['-snapshot', '-drive', `file=${image},if=virtio,format=qcow2`]);
    await isRefused('-snapshot');
    await machine.kill();
    const { pid } = await cairn(['restore', 'latest', '--repo', options.repo], options);
    machine = await LabMachine.adopt('images', dir, Number(pid));
    await machine.waitForProgress();
  });

  it('is one below a filter', async () => {
    const dir = scratchDir('filter');
    const image = join(dir, 'disk.qcow2');
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', image, '64M']);
    await start(dir, [
      ...['-object', 'throttle-group,id=tg0,x-iops-total=1000'],
      ...['-blockdev', `driver=qcow2,node-name=q0,file.driver=file,file.filename=${image}`],
      ...['-blockdev', 'driver=throttle,throttle-group=tg0,file=q0,node-name=t0'],
      ...['-device', 'virtio-blk-pci,drive=t0'],
    ]);
    await isRefused('filter throttle');
  });

  it('is one that another host serves', async () => {
    const dir = scratchDir('nbd');
    const image = join(dir, 'disk.qcow2');
    const socket = join(dir, 'nbd.sock');
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', image, '64M']);
    server = spawn('qemu-nbd', ['-f', 'raw', '-k', socket, '-t', '-e', '8', image], { stdio: 'ignore' });
    while (!existsSync(socket)) await sleep(20);
    const drive = `file=nbd+unix:///?socket=${socket},if=none,id=d0,format=qcow2`;
    await start(dir, ['-drive', drive, '-device', 'virtio-blk-pci,drive=d0']);
    await isRefused('no file of this host');
  });
});
