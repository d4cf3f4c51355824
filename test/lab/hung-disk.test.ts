/** A disk whose storage hangs: a real QEMU on a disk that another process serves by NBD, which is stopped. */

import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { cairn, runCairn } from './support/cairn-cli.js';
import { scratchDir } from './support/lab-files.js';

describe('a guest with requests under way to a disk that hangs', () => {
  let server: ChildProcess;
  let machine: LabMachine;
  let options: { dir: string };
  const args: string[] = [];

  beforeAll(async () => {
    const dir = scratchDir('hung-disk');
    const [image, socket] = [join(dir, 'disk.img'), join(dir, 'nbd.sock')];
    execFileSync('qemu-img', ['create', '-q', '-f', 'raw', image, '64M']);
    const started = spawn('qemu-nbd', ['--persistent', '--format=raw', `--socket=${socket}`, image], {
      stdio: 'ignore',
    });
    server = started;
    process.once('exit', () => started.kill('SIGKILL'));
    while (!existsSync(socket)) await sleep(50);
    machine = await LabMachine.start({
      name: 'hung-disk',
      memoryMib: 104,
      dir,
      devices: [],
      extraArgs: [
        ...['-drive', `file=nbd:unix:${socket},if=none,id=first,format=raw`],
        ...['-device', 'virtio-blk-pci,drive=first'],
      ],
    });
    options = { dir };
    args.push('checkpoint', machine.address, '--repo', join(dir, 'repo'), '--memory-only');
    await cairn(['init', '--repo', join(dir, 'repo')], options);
    await cairn(args, options);
  });
  afterAll(async () => {
    await machine.kill();
    const ended = once(server, 'exit');
    server.kill('SIGKILL');
    await ended;
    await machine.destroy();
  });

  it('stands still when it is paused, the error says so, and it runs again once the storage answers', async () => {
    await machine.guest('lab pair');
    await machine.waitForProgress();
    server.kill('SIGSTOP');
    // Until the writer waits for its write.
    for (let [before, now] = ['', '?']; before !== now;) {
      await sleep(1000);
      [before, now] = [now, await machine.guest('cat /tmp/pair')];
    }
    const { exitCode, messages } = await runCairn(args, options);
    expect(exitCode).toBe(20);
    expect(messages.at(-1)).toMatchObject({
      code: 'VM_NOT_RESUMED',
      message: expect.stringContaining('QEMU does not answer, `cont` neither'),
      hint: expect.stringContaining('as soon as that answers'),
    });
    const ticks = machine.lastTick();
    await sleep(2000);
    expect(machine.lastTick()).toBe(ticks);

    server.kill('SIGCONT');
    await machine.waitForProgress();
    expect(await machine.qmp.status()).toBe('running');
    await machine.guest('lab stop');
    expect(await cairn(args, options)).toMatchObject({ kind: 'incremental' });
  });
});
