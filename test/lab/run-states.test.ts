/** VMs that do not run: what a checkpoint makes of each state of QEMU, and in which state a paused one comes back. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, describe, expect, it } from '@jest/globals';

import { LabMachine, type LabMachineOptions } from './machine.js';
import { cairn, runCairn, type CliMessage, type CliOptions } from './support/cairn-cli.js';
import { groundTruth } from './support/ground-truth.js';
import { scratchDir, type QemuVersion } from './support/lab-files.js';
import { checkpointAgainstTruth, differingFromStored } from './support/oracle.js';

const VERSIONS: readonly QemuVersion[] = ['7.2', '10.0'];

let machine: LabMachine;
let options: CliOptions & { readonly repo: string };
afterEach(() => machine.destroy());

async function start(more: Partial<LabMachineOptions> = {}): Promise<void> {
  machine = await LabMachine.start({ name: 'state', memoryMib: 96, ...more });
  options = { dir: machine.dir, repo: join(machine.dir, 'repo') };
  await cairn(['init', '--repo', options.repo], options);
}

const take = (): string[] => ['checkpoint', machine.address, '--repo', options.repo, '--memory-only'];

async function state(expected: string): Promise<void> {
  for (let i = 0; i < 600 && (await machine.qmp.status()) !== expected; i++) await sleep(50);
  expect(await machine.qmp.status()).toBe(expected);
}

/** The checkpoint fails by code, in words and with a remedy, and changes nothing; doctor says it before. */
async function expectRefused(status: string, means: string, remedy: string): Promise<void> {
  await state(status);
  const { exitCode, messages } = await runCairn(take(), options);
  expect({ exitCode, error: messages.at(-1) }).toMatchObject({
    exitCode: 22,
    error: {
      code: 'VM_STATE',
      message: expect.stringContaining(means),
      hint: expect.stringContaining(remedy),
    },
  });
  const { hazards } = await cairn(['doctor', machine.address], options);
  expect(hazards).toContainEqual(
    expect.objectContaining({ code: 'VM_STATE', text: expect.stringContaining(means) }),
  );
  expect(await machine.qmp.status()).toBe(status);
}

/** Starts a machine with a device, and has its guest do that to it, without an answer: the VM may stop at it. */
async function startAndPoke(device: string, action: string, commands: string): Promise<void> {
  await start({ extraArgs: ['-device', `${device},addr=9`, '-action', action] });
  const folder = '/sys/bus/pci/devices/0000:00:09.0';
  await machine.guest(
    `read base rest < ${folder}/resource; echo 1 > ${folder}/enable; cd ${folder}; (sleep 0.2; ${commands}) >/dev/null 2>&1 &`,
  );
}

async function restored(...more: string[]): Promise<CliMessage> {
  await machine.kill();
  const result = await cairn(['restore', 'latest', '--repo', options.repo, ...more], options);
  machine = await LabMachine.adopt('state', machine.dir, Number(result.pid));
  return result;
}

describe.each(VERSIONS)('a VM of QEMU %s', (qemu) => {
  it('that was paused comes back paused and exact, and runs when that is asked for', async () => {
    await start({ qemu });
    await machine.qmp.command('stop');
    await cairn(take(), options);
    expect(await machine.qmp.status()).toBe('paused');
    expect(await restored()).toMatchObject({ running: false });
    expect(await machine.qmp.status()).toBe('paused');
    expect(await differingFromStored(await groundTruth(machine), options.repo, await latest())).toEqual([]);
    expect(await restored('--running')).toMatchObject({ running: true });
    await machine.waitForProgress();
  });

  it('that has not begun to run (-S) is taken as it is', async () => {
    await start({ qemu, extraArgs: ['-S'], noWait: true });
    expect(await cairn(take(), options)).toMatchObject({ kind: 'base' });
    expect(await machine.qmp.status()).toBe('prelaunch');
    expect(await restored('--running')).toMatchObject({ running: true });
    await machine.waitForTick(1);
  });
});

describe('a checkpoint is refused, in words of what is the matter,', () => {
  it('of a VM whose guest sleeps, and is taken when it is awake again', async () => {
    await start();
    machine.guest('sleep 0.2; echo mem > /sys/power/state').catch(() => undefined);
    await expectRefused('suspended', 'sleeps', 'system_wakeup');
    await machine.qmp.command('system_wakeup');
    await state('running');
    await machine.waitForProgress();
    expect((await checkpointAgainstTruth(machine, ['--memory-only'], options)).differing).toEqual([]);
  });

  it('of a VM that was saved into a file, until it goes on', async () => {
    await start();
    await machine.qmp.command('stop');
    await groundTruth(machine);
    await expectRefused('postmigrate', 'saved into a file', 'cont');
    await machine.qmp.command('cont');
    await machine.waitForProgress();
    expect((await checkpointAgainstTruth(machine, ['--memory-only'], options)).differing).toEqual([]);
  });

  it('of a VM whose guest has shut down', async () => {
    await start({ extraArgs: ['-no-shutdown'] });
    machine.guest('poweroff -f').catch(() => undefined);
    await expectRefused('shutdown', 'has shut down', 'system_reset');
  });

  it('of a VM whose guest has panicked', async () => {
    // As its kernel would say it (docs/specs/pvpanic.txt of QEMU).
    await startAndPoke('pvpanic-pci', 'panic=pause', 'devmem $base 8 1');
    await expectRefused('guest-panicked', 'its guest has panicked', 'restore an earlier checkpoint');
  });

  it('of a VM that its watchdog has stopped', async () => {
    // Both of its timers are unlocked and set to 1, and it is turned on (hw/watchdog/wdt_i6300esb.c of QEMU).
    const unlock = 'devmem $((base+12)) 16 0x80; devmem $((base+12)) 16 0x86';
    const timers = `for timer in 0 4; do ${unlock}; devmem $((base+timer)) 32 1; done`;
    const turnOn = "printf '\\002' | dd of=config bs=1 seek=104 conv=notrunc";
    await startAndPoke('i6300esb', 'watchdog=pause', `${timers}; ${turnOn}`);
    await expectRefused('watchdog', 'its watchdog device', 'restore an earlier checkpoint');
  });

  it('of a VM whose disk fails, and is taken when that is mended', async () => {
    await start(diskThatFails());
    machine.guest('dd if=/dev/zero of=/dev/vda bs=4096 count=1 oflag=direct').catch(() => undefined);
    await expectRefused('io-error', 'disks reports errors', 'cont');
    await machine.qmp.command('cont');
    await state('running');
    await machine.waitForProgress();
    expect((await checkpointAgainstTruth(machine, ['--memory-only'], options)).differing).toEqual([]);
  });

  it('of a QEMU that has no machine yet', async () => {
    await start({ extraArgs: ['-preconfig'], noWait: true });
    const { exitCode, messages } = await runCairn(take(), options);
    expect({ exitCode, error: messages.at(-1) }).toMatchObject({
      exitCode: 22,
      error: { code: 'VM_STATE', hint: expect.stringContaining('x-exit-preconfig') },
    });
    await machine.qmp.command('x-exit-preconfig');
    await machine.waitForTick(1);
    expect(await cairn(take(), options)).toMatchObject({ kind: 'base' });
  });

  it('of a QEMU that a signal has stopped, and is taken when it goes on', async () => {
    await start();
    process.kill(machine.pid, 'SIGSTOP');
    for (const command of [take(), ['doctor', machine.address]]) {
      const { exitCode, messages } = await runCairn(command, options);
      expect({ exitCode, error: messages.at(-1) }).toMatchObject({
        exitCode: 22,
        error: {
          code: 'VM_STATE',
          message: expect.stringContaining('stopped by a signal'),
          hint: expect.stringContaining(`kill -CONT ${machine.pid}`),
        },
      });
    }
    process.kill(machine.pid, 'SIGCONT');
    await machine.waitForProgress();
    expect(await cairn(take(), options)).toMatchObject({ kind: 'base' });
  });
});

async function latest(): Promise<string> {
  const { checkpoints } = await cairn(['list', '--repo', options.repo], options);
  return (checkpoints as { checkpoint_id: string }[]).at(-1)!.checkpoint_id;
}

/** A disk whose first write fails, and later ones do not. */
function diskThatFails(): Partial<LabMachineOptions> {
  const dir = scratchDir('state');
  const image = join(dir, 'failing.raw');
  writeFileSync(image, Buffer.alloc(1 << 20));
  const faulty = {
    driver: 'blkdebug',
    'node-name': 'faulty',
    image: { driver: 'file', filename: image },
    'inject-error': [{ event: 'none', iotype: 'write', errno: 5, once: true }],
  };
  const device = 'virtio-blk-pci,drive=faulty,werror=stop';
  return { dir, devices: [], extraArgs: ['-blockdev', JSON.stringify(faulty), '-device', device] };
}
