/**
 * Machines of which a part lives in another process or in the host: a TPM, a disk behind vhost-user, a network device.
 * It comes back with the machine, and a second machine never gets hold of it.
 */

import { execFileSync, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { cairn, runCairn, type CliOptions } from './support/cairn-cli.js';
import { scratchDir } from './support/lab-files.js';
import { extendPcr, readPcr } from './support/guest-tpm.js';

const MEMORY_MIB = 96;

let machine: LabMachine;
let options: CliOptions & { readonly repo: string };
const backEnds: ChildProcess[] = [];
afterEach(async () => {
  await endBackEnds();
  await machine.destroy();
});

async function endBackEnds(): Promise<void> {
  for (const backEnd of backEnds.splice(0)) {
    const ended = backEnd.exitCode !== null || backEnd.signalCode !== null || once(backEnd, 'exit');
    backEnd.kill('SIGKILL');
    await ended;
  }
}

async function serve(command: readonly string[], socket: string): Promise<void> {
  backEnds.push(spawn(command[0]!, command.slice(1), { stdio: 'ignore' }));
  for (let i = 0; i < 200 && !existsSync(socket); i++) await sleep(50);
}

async function start(
  dir: string,
  extraArgs: readonly string[],
  memory: readonly string[] = [],
): Promise<void> {
  machine = await LabMachine.start({
    ...{ name: 'ends', dir, memoryMib: MEMORY_MIB, devices: [] },
    extraArgs: [...memory, ...extraArgs],
  });
  options = { dir, repo: join(dir, 'repo') };
  await cairn(['init', '--repo', options.repo], options);
}

const take = (): Promise<unknown> => cairn(['checkpoint', machine.address, '--repo', options.repo], options);

/** As its own sockets, so that what is refused is the back end. */
const asCopy = (): string[] => [...['restore', 'latest', '--repo', options.repo, '--new-name', 'copy']];

async function expectCopyRefused(text: string): Promise<void> {
  const { exitCode, messages } = await runCairn(asCopy(), options);
  expect({ exitCode, error: messages.at(-1) }).toMatchObject({
    exitCode: 22,
    error: { code: 'RESTORE_TARGET_BUSY', message: expect.stringContaining(text) },
  });
  await machine.waitForProgress();
}

async function restored(...more: string[]): Promise<void> {
  await machine.kill();
  const { pid } = await cairn(['restore', 'latest', '--repo', options.repo, ...more], options);
  machine = await LabMachine.adopt('ends', machine.dir, Number(pid));
  await machine.waitForProgress();
}

const hasTpm = spawnSync('swtpm', ['--version']).status === 0;
if (!hasTpm) process.stderr.write('skipped: TPM: there is no swtpm\n');

(hasTpm ? describe : describe.skip)('a TPM in a swtpm', () => {
  const tpmArgs = (socket: string): string[] => [
    ...['-chardev', `socket,id=chrtpm,path=${socket}`],
    ...['-tpmdev', 'emulator,id=tpm0,chardev=chrtpm', '-device', 'tpm-crb,tpmdev=tpm0'],
  ];

  it('is as it was at the checkpoint, in a swtpm that knows nothing of it', async () => {
    const dir = scratchDir('tpm');
    const socket = join(dir, 'swtpm.sock');
    const swtpm = (state: string): string[] => {
      mkdirSync(join(dir, state));
      return [
        'swtpm',
        'socket',
        '--tpm2',
        '--tpmstate',
        `dir=${join(dir, state)}`,
        '--ctrl',
        `type=unixio,path=${socket}`,
      ];
    };
    await serve(swtpm('state'), socket);
    await start(dir, tpmArgs(socket));
    await extendPcr(machine);
    const atCheckpoint = await readPcr(machine);
    await take();
    await extendPcr(machine);
    expect(await readPcr(machine)).not.toBe(atCheckpoint);
    await expectCopyRefused(socket);

    await machine.kill();
    await endBackEnds();
    rmSync(socket, { force: true });
    const refused = await runCairn(['restore', 'latest', '--repo', options.repo], options);
    expect(refused.messages.at(-1)).toMatchObject({
      code: 'RESTORE_FAILED',
      message: expect.stringContaining(socket),
      hint: expect.stringContaining('swtpm'),
    });
    await serve(swtpm('other-state'), socket);
    await restored();
    expect(await readPcr(machine)).toBe(atCheckpoint);
  }, 120_000);
});

describe('a disk behind a vhost-user process', () => {
  const MEMORY = [
    ...['-object', `memory-backend-memfd,id=m0,size=${MEMORY_MIB}M,share=on`],
    ...['-machine', 'pc,memory-backend=m0'],
  ];

  it('comes back with its machine; whose disk it is, is said', async () => {
    const dir = scratchDir('vhost');
    const [image, socket] = [join(dir, 'disk.raw'), join(dir, 'blk.sock')];
    execFileSync('qemu-img', ['create', '-q', '-f', 'raw', image, '16M']);
    const daemon = [
      ...['qemu-storage-daemon', '--blockdev', `driver=file,node-name=f0,filename=${image}`],
      ...['--export', `vhost-user-blk,id=e0,node-name=f0,addr.type=unix,addr.path=${socket},writable=on`],
    ];
    await serve(daemon, socket);
    const device = [
      '-chardev',
      `socket,id=blk0,path=${socket}`,
      '-device',
      'vhost-user-blk-pci,chardev=blk0',
    ];
    await start(dir, device, MEMORY);
    await machine.guest('lab fill 20');
    const { messages } = await runCairn(['doctor', machine.address], options);
    expect(messages.at(-1)?.hazards).toContainEqual(expect.objectContaining({ code: 'VHOST_USER' }));
    expect(await take()).toMatchObject({ tracker: 'compare' });
    const sum = await machine.guest('lab sum');
    await expectCopyRefused(socket);
    await restored();
    expect(await machine.guest('lab sum')).toBe(sum);
  }, 120_000);
});

/** Whether QEMU gets such a device here: a container may have none, or may not make one. */
function makesTaps(): boolean {
  const tap = 'tap,id=n0,ifname=cairn-try0,script=no,downscript=no';
  const args = ['-machine', 'none', '-nodefaults', '-display', 'none', '-netdev', tap, '-monitor', 'stdio'];
  return spawnSync('qemu-system-x86_64', args, { input: 'quit\n', timeout: 20_000 }).status === 0;
}

const hasTap = makesTaps();
if (!hasTap) process.stderr.write('skipped: TAP: QEMU cannot make such a device here\n');

(hasTap ? describe : describe.skip)('a network device of the host', () => {
  const TAP = 'cairn-lab0';

  it('is not taken from the living machine, and comes back with its own', async () => {
    const dir = scratchDir('tap');
    const tap = `tap,id=n0,ifname=${TAP},script=no,downscript=no`;
    await start(dir, ['-netdev', tap, '-device', 'virtio-net-pci,netdev=n0']);
    await take();
    await expectCopyRefused(TAP);
    await restored();
  }, 120_000);
});
