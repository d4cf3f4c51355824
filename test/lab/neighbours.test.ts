/**
 * A restore beside the machine that lives: what the new QEMU would share with it is found before QEMU starts, and the
 * living machine goes on as if nothing had been asked.
 */

import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { cairn, runCairn, type CliMessage, type CliOptions } from './support/cairn-cli.js';
import { HarnessQmp } from './support/harness-qmp.js';
import { scratchDir } from './support/lab-files.js';

const MEMORY_MIB = 96;

let machine: LabMachine;
let options: CliOptions & { readonly repo: string };
let beside: LabMachine | undefined;
afterEach(async () => {
  await beside?.kill();
  beside = undefined;
  await machine.destroy();
});

/** A machine with a checkpoint, which lives on. */
async function start(dir: string, extraArgs: readonly string[]): Promise<void> {
  machine = await LabMachine.start({ name: 'web', dir, memoryMib: MEMORY_MIB, devices: [], extraArgs });
  options = { dir, repo: join(dir, 'repo') };
  await cairn(['init', '--repo', options.repo], options);
  await cairn(['checkpoint', machine.address, '--repo', options.repo], options);
}

/** What the lab's own machine has, renamed for a copy. */
function ownSockets(): readonly string[] {
  const path = (name: string): string => join(machine.dir, `copy-${name}`);
  return [
    ...['--qmp', path('qmp.sock')],
    ...['--set-arg', `-qmp#2=unix:${path('harness.sock')},server=on,wait=off`],
    ...['--set-arg', `-serial#2=unix:${path('agent.sock')},server=on,wait=off`],
    ...['--set-arg', `-chardev=file,id=diary,path=${path('diary.log')},append=on`],
  ];
}

const restore = (...more: readonly string[]): string[] => [
  ...['restore', 'latest', '--repo', options.repo],
  ...ownSockets(),
  ...more,
];

async function refusal(...more: readonly string[]): Promise<CliMessage | undefined> {
  const { exitCode, messages } = await runCairn(restore(...more), options);
  expect(exitCode).not.toBe(0);
  await machine.waitForProgress();
  return messages.at(-1);
}

const busy = (text: string): unknown =>
  expect.objectContaining({ code: 'RESTORE_TARGET_BUSY', message: expect.stringContaining(text) });

describe('memory in a file that processes share', () => {
  it('is not written to by the restore of a copy', async () => {
    const dir = scratchDir('shared');
    const memory = join('/dev/shm', `${basename(dir)}.ram`);
    const backend = `memory-backend-file,id=m0,size=${MEMORY_MIB}M,mem-path=${memory},share=on`;
    try {
      await start(dir, ['-machine', 'pc,memory-backend=m0', '-object', backend]);
      await machine.guest('lab fill 20');
      const before = await machine.guest('lab sum');
      expect(await refusal()).toEqual(busy(memory));
      expect(await machine.guest('lab sum')).toBe(before);

      const other = `${memory}.copy`;
      const { pid } = await cairn(
        restore('--set-arg', `-object=${backend.replace(memory, other)}`, '--set-arg', '-name=copy'),
        options,
      );
      expect(pid).not.toBe(machine.pid);
      process.kill(Number(pid), 'SIGKILL');
      rmSync(other);
      expect(await machine.guest('lab sum')).toBe(before);
    } finally {
      rmSync(memory, { force: true });
    }
  });
});

describe('a copy under another name', () => {
  it('runs beside the living machine, with everything of its own', async () => {
    const dir = scratchDir('copy');
    const memory = join('/dev/shm', `${basename(dir)}-web.ram`);
    const copied = memory.replace('web.ram', 'web2.ram');
    const image = join(dir, 'disk.qcow2');
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', image, '64M']);
    try {
      machine = await LabMachine.start({
        name: 'web',
        dir,
        memoryMib: MEMORY_MIB,
        devices: [],
        uuid: '11111111-2222-3333-4444-555555555555',
        extraArgs: [
          ...['-object', `memory-backend-file,id=m0,size=${MEMORY_MIB}M,mem-path=${memory},share=on`],
          ...['-machine', 'pc,memory-backend=m0', '-pidfile', join(dir, 'pid'), '-vnc', '127.0.0.1:71'],
          ...['-netdev', 'user,id=n0,hostfwd=tcp:127.0.0.1:40322-:22', '-device', 'e1000,netdev=n0,romfile='],
          ...['-netdev', `stream,id=n1,server=on,addr.type=unix,addr.path=${dir}/net.sock`],
          ...['-device', 'e1000,netdev=n1,romfile='],
          ...['-drive', `file=${image},if=none,id=d0,format=qcow2`, '-device', 'virtio-blk-pci,drive=d0'],
        ],
      });
      options = { dir, repo: join(dir, 'repo') };
      await cairn(['init', '--repo', options.repo], options);
      await machine.guest('echo before >/dev/vda');
      await cairn(['checkpoint', machine.address, '--repo', options.repo, '--disks', 'external'], options);
      await machine.guest('lab fill 20');
      const sum = await machine.guest('lab sum');

      const result = await cairn(
        ['restore', 'latest', '--repo', options.repo, '--new-name', 'web2'],
        options,
      );
      expect(result.vm_address).toBe(`qmp:${join(dir, 'web2-qmp.sock')}`);
      const copy = await HarnessQmp.connect(join(dir, 'web2-harness.sock'));
      try {
        expect(await copy.command('query-name')).toEqual({ name: 'web2' });
        expect(await copy.command('query-uuid')).not.toEqual({
          UUID: '11111111-2222-3333-4444-555555555555',
        });
        expect(existsSync(copied)).toBe(true);
        // Its guest counts on, in a diary of its own.
        const ticks = (): number =>
          existsSync(join(dir, 'web2-diary.log'))
            ? readFileSync(join(dir, 'web2-diary.log'), 'latin1').split('tick').length
            : 0;
        while (ticks() < 3) await sleep(50);
        await cairn(
          ['checkpoint', `qmp:${join(dir, 'web2-qmp.sock')}`, '--repo', options.repo, '--memory-only'],
          options,
        );
      } finally {
        copy.close();
        process.kill(Number(result.pid), 'SIGKILL');
      }
      expect(await machine.guest('lab sum')).toBe(sum);
      await machine.waitForProgress();
    } finally {
      for (const path of [memory, copied]) rmSync(path, { force: true });
    }
  });
});

/** What a machine takes, in words; its arguments, what a refusal names, and the argument by which a copy takes another. */
interface Taken {
  readonly args: readonly string[];
  readonly names: string;
  readonly copy: string;
}

/** Each with a card of its own. */
function taken(dir: string): ReadonlyMap<string, Taken> {
  const card = (id: string, of: (name: string) => string, names: string, nth: number): Taken => ({
    args: ['-netdev', of(id), '-device', `e1000,netdev=${id},romfile=`],
    names,
    copy: `-netdev#${nth}=${of(`other-${id}`).replace(`id=other-${id}`, `id=${id}`)}`,
  });
  const raw = join(dir, 'raw.img');
  execFileSync('truncate', ['-s', '16M', raw]);
  execFileSync('cp', [raw, `${raw}.copy`]);
  const drive = (file: string): string => `file=${file},if=none,id=d,format=raw,file.locking=off`;
  const port = (id: string, own: number): number => (id.startsWith('other') ? own + 10 : own);
  return new Map([
    [
      'a socket that a network card listens on',
      card(
        'a',
        (id) => `stream,id=${id},server=on,addr.type=unix,addr.path=${dir}/${id}.sock`,
        `${dir}/a.sock`,
        1,
      ),
    ],
    [
      'a socket that a network card receives at',
      card(
        'b',
        (id) =>
          `dgram,id=${id},local.type=unix,local.path=${dir}/${id}.sock,remote.type=unix,remote.path=${dir}/r`,
        `${dir}/b.sock`,
        2,
      ),
    ],
    [
      'a port that is forwarded to the guest',
      card('c', (id) => `user,id=${id},hostfwd=tcp:127.0.0.1:${port(id, 40222)}-:22`, 'tcp port 40222', 3),
    ],
    [
      'a port that a network card receives at',
      card(
        'e',
        (id) => `socket,id=${id},udp=127.0.0.1:40224,localaddr=127.0.0.1:${port(id, 40225)}`,
        'udp port 40225',
        4,
      ),
    ],
    [
      'the PID file',
      { args: ['-pidfile', join(dir, 'pid')], names: join(dir, 'pid'), copy: `-pidfile=${dir}/other.pid` },
    ],
    [
      'a log that QEMU empties first',
      {
        args: ['-chardev', `file,id=log,path=${dir}/own.log`, '-device', 'isa-debugcon,chardev=log'],
        names: join(dir, 'own.log'),
        copy: `-chardev#2=file,id=log,path=${dir}/other.log`,
      },
    ],
    [
      'a disk without locks',
      {
        args: ['-drive', drive(raw), '-device', 'virtio-blk-pci,drive=d'],
        names: raw,
        copy: `-drive=${drive(`${raw}.copy`)}`,
      },
    ],
  ]);
}

describe('a restore beside the living machine', () => {
  it('is refused by name for each thing that it would share, and done with others', async () => {
    const dir = scratchDir('beside');
    const things = taken(dir);
    machine = await LabMachine.start({
      name: 'web',
      dir,
      memoryMib: MEMORY_MIB,
      devices: [],
      extraArgs: [...things.values()].flatMap(({ args }) => args),
    });
    options = { dir, repo: join(dir, 'repo') };
    await cairn(['init', '--repo', options.repo], options);
    await cairn(['checkpoint', machine.address, '--repo', options.repo, '--memory-only'], options);

    const others = (except?: string): readonly string[] =>
      [...things].flatMap(([what, { copy }]) => (what === except ? [] : ['--set-arg', copy]));
    for (const [what, { names }] of things) {
      const { exitCode, messages } = await runCairn(restore(...others(what)), options);
      expect({ what, exitCode, error: messages.at(-1) }).toEqual({ what, exitCode: 22, error: busy(names) });
      expect(existsSync(join(dir, 'copy-qmp.sock'))).toBe(false);
    }
    await machine.waitForProgress();

    const { pid } = await cairn(restore(...others()), options);
    process.kill(Number(pid), 'SIGKILL');
    await machine.waitForProgress();
  });
});
