/**
 * A VM that runs while its memory still comes in. The oracle: with the VM stopped and all of it in, every byte of memory is
 * the repository's.
 */

import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';

import type { FillingNote } from '../../src/host/filling-note.js';
import { LabMachine } from './machine.js';
import { cairn, CairnProcess, isSummary, runCairn } from './support/cairn-cli.js';
import { groundTruth } from './support/ground-truth.js';
import { gentleLoad } from './support/guest-loads.js';
import type { QemuVersion } from './support/lab-files.js';
import { checkpointAgainstTruth, differingFromStored } from './support/oracle.js';

const CHAIN_LENGTH = 12;

function parentOf(pid: number): number {
  return Number(/^PPid:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))![1]);
}

describe.each<QemuVersion>(['7.2', '10.0'])('a lazy restore under QEMU %s', (qemu) => {
  let origin: LabMachine;
  let options: { dir: string };
  let repo = '';
  let latest = '';
  let lastTick = 0;
  let checksum = '';
  let machine: LabMachine | undefined;

  beforeAll(async () => {
    origin = await LabMachine.start({
      name: 'lazy',
      qemu,
      memoryMib: 192,
      devices: ['disk', 'net', 'balloon', 'vga'],
    });
    options = { dir: origin.dir };
    repo = join(origin.dir, 'repo');
    await cairn(['init', '--repo', repo], options);
    await origin.guest('lab fill 32');
    checksum = await origin.guest('lab sum');
    await origin.guest(gentleLoad(8));
    const watch = new CairnProcess(
      ['watch', origin.address, '--repo', repo, '--every', '0.2', '--count', `${CHAIN_LENGTH}`],
      options,
    );
    latest = String((await watch.message(isSummary, CHAIN_LENGTH - 1)).checkpoint_id);
    lastTick = origin.lastTick();
    expect(await watch.ended).toMatchObject({ exitCode: 0 });
    await origin.kill();
  }, 300_000);
  afterAll(() => origin.destroy());
  afterEach(async () => {
    await machine?.kill();
    machine = undefined;
  });

  /** One that cannot be reached is ended: nobody else would, and its page server lives as long as it fills. */
  async function adopt(pid: unknown): Promise<LabMachine> {
    try {
      machine = await LabMachine.adopt('lazy', origin.dir, Number(pid));
      return machine;
    } catch (error) {
      process.kill(Number(pid), 'SIGKILL');
      throw error;
    }
  }

  /** What the runtime folder says of VMs that are being filled; what it says of VMs that have ended is left out. */
  function notes(): readonly FillingNote[] {
    const folder = join(origin.dir, 'runtime');
    return readdirSync(folder)
      .filter((name) => name.startsWith('filling-') && name.endsWith('.json'))
      .map((name) => JSON.parse(readFileSync(join(folder, name), 'utf8')) as FillingNote)
      .filter(({ vm }) => existsSync(`/proc/${vm.pid}`));
  }

  /** What fills the VM is ended as the kernel would end it for want of memory. */
  function killServer(who: 'alone' | 'and who looks after it'): void {
    const { server } = notes()[0]!;
    if (who !== 'alone') process.kill(parentOf(server.pid), 'SIGKILL');
    process.kill(server.pid, 'SIGKILL');
  }

  it('goes on: counter, open file, data and disk', async () => {
    const bytes = origin.diary().length;
    const summary = await cairn(['restore', latest, '--repo', repo, '--lazy'], options);
    expect(summary).toMatchObject({ running: true, filled: true });
    const again = await adopt(summary.pid);
    const first = await again.waitForTick(1, 60_000, bytes);
    expect(first.tick).toBeLessThanOrEqual(lastTick + 1);
    await again.waitForTick(first.tick + 5, 60_000, bytes);
    expect(again.ticks(bytes).every(({ tick, lines }) => tick === lines)).toBe(true);
    expect(await again.guest('lab sum')).toBe(checksum);
    expect(notes()).toEqual([]);
  });

  it('is byte for byte the checkpoint once all is there', async () => {
    const { pid, running } = await cairn(['restore', latest, '--repo', repo, '--lazy', '--paused'], options);
    expect(running).toBe(false);
    const again = await adopt(pid);
    expect(await differingFromStored(await groundTruth(again), repo, latest)).toEqual([]);
  });

  it('is waited for by checkpoints, and shown, as long as it is being filled', async () => {
    const { pid, filled: isFilled } = await cairn(
      ['restore', latest, '--repo', repo, '--lazy', '--background', '--fill-rate', '0.2'],
      options,
    );
    expect(isFilled).toBe(false);
    const again = await adopt(pid);
    await again.waitForProgress();
    expect(await cairn(['list', '--repo', repo], options)).toMatchObject({
      filling: [{ vm_address: again.address, checkpoint_id: latest }],
    });
    expect(await runCairn(['doctor', again.address], options)).toMatchObject({
      exitCode: 22,
      messages: [expect.objectContaining({ filling: expect.objectContaining({ served: true }) })],
    });
    expect(await runCairn(['checkpoint', again.address, '--repo', repo], options)).toMatchObject({
      exitCode: 22,
      messages: expect.arrayContaining([
        expect.objectContaining({ message_type: 'error', code: 'VM_FILLING', retryable: true }),
      ]),
    });
    killServer('and who looks after it');
    await cairn(['restore', '--resume', again.address, '--fill-rate', '1000'], options);
    expect(notes()).toEqual([]);
    const { differing, summary } = await checkpointAgainstTruth(again, ['--name', 'after'], {
      ...options,
      repo,
    });
    expect(differing).toEqual([]);
    await again.kill();
    const restored = await cairn(
      ['restore', String(summary.checkpoint_id), '--repo', repo, '--lazy', '--paused'],
      options,
    );
    const third = await adopt(restored.pid);
    expect(await differingFromStored(await groundTruth(third), repo, String(summary.checkpoint_id))).toEqual(
      [],
    );
  });

  it.each([200, 1200])('goes on with another page server when one is killed at step %i', async (step) => {
    const log = join(origin.dir, `killed-at-${step}.log`);
    const args = ['restore', latest, '--repo', repo, '--lazy', '--paused', '--log', log];
    const env = { CAIRN_FILL_FAULT_STEP: `${step}` };
    const { pid, filled } = await cairn(args, { ...options, env });
    expect(filled).toBe(true);
    expect(readFileSync(log, 'latin1')).toContain('Migration paused');
    const again = await adopt(pid);
    expect(await differingFromStored(await groundTruth(again), repo, latest)).toEqual([]);
  });

  it.each([1, 2])('leaves nothing running when its page server is killed at step %i', async (step) => {
    const result = await runCairn(['restore', latest, '--repo', repo, '--lazy'], {
      ...options,
      env: { CAIRN_FILL_FAULT_STEP: `${step}` },
    });
    expect(result).toMatchObject({
      exitCode: 1,
      messages: expect.arrayContaining([expect.objectContaining({ code: 'RESTORE_FAILED' })]),
    });
    expect(existsSync(join(origin.dir, 'qmp.sock'))).toBe(false);
    expect(notes()).toEqual([]);
  });

  it('survives that its page server is killed again and again', async () => {
    const restoring = new CairnProcess(
      ['restore', latest, '--repo', repo, '--lazy', '--paused', '--fill-rate', '10'],
      options,
    );
    let last = 0;
    // A QEMU before 8.2 ends when its page server is killed while it takes over (docs/lazy-restore.md).
    const mayBeKilled = ({ state, donePages }: FillingNote): boolean =>
      state === 'filling' && (qemu === '10.0' || donePages > 0);
    for (let kills = 0; kills < 4;) {
      if (restoring.isOver) throw new Error(`all is there after ${kills} kills`);
      const [note] = notes();
      if (note === undefined || !mayBeKilled(note) || note.server.pid === last) {
        await sleep(10);
        continue;
      }
      await sleep(Math.random() * 400);
      last = note.server.pid;
      killServer(++kills === 4 ? 'and who looks after it' : 'alone');
    }
    const { messages } = await restoring.ended;
    expect(messages.at(-1)).toMatchObject({ code: 'RESTORE_FAILED', message: 'the page server has ended' });
    const { vm, vmAddress } = notes()[0]!;
    await cairn(['restore', '--resume', vmAddress], options);
    const again = await adopt(vm.pid);
    expect(await differingFromStored(await groundTruth(again), repo, latest)).toEqual([]);
  });

  describe('from a repository with a flipped bit', () => {
    let damaged = '';

    beforeAll(() => {
      damaged = join(origin.dir, 'damaged');
      origin.damagedOnPurpose.add(damaged);
      cpSync(repo, damaged, { recursive: true });
      const packs = join(damaged, 'vms/lazy/packs');
      // The first one is of all memory, and the middle of it of what the guest filled with random data.
      const pack = join(packs, readdirSync(packs)[0]!);
      const bytes = readFileSync(pack);
      bytes[bytes.length >>> 1]! ^= 1;
      writeFileSync(pack, bytes);
    });

    const restored = async (...more: readonly string[]): Promise<FillingNote> => {
      const args = ['restore', latest, '--repo', damaged, '--lazy', ...more];
      expect(await runCairn(args, options)).toMatchObject({
        exitCode: 23,
        messages: expect.arrayContaining([
          expect.objectContaining({
            message_type: 'error',
            code: 'REPO_DAMAGED',
            message: expect.stringMatching(/packs.0*1\b/),
          }),
        ]),
      });
      const [note] = notes();
      return note!;
    };

    it('stands at the page that cannot be read, and goes on from an intact copy', async () => {
      const { vm, vmAddress } = await restored();
      const again = await adopt(vm.pid);
      const sum = again.guest('lab sum', 250_000);
      while (!notes()[0]!.isAwaited) await sleep(50);
      const bytes = again.diary().length;
      await sleep(1000);
      expect(again.diary().length).toBe(bytes);
      expect(await runCairn(['doctor', vmAddress], options)).toMatchObject({
        exitCode: 22,
        messages: [expect.objectContaining({ filling: expect.objectContaining({ awaited: true }) })],
      });
      await cairn(['restore', '--resume', vmAddress, '--repo', repo], options);
      expect(await sum).toBe(checksum);
    });

    it('has no wrong byte placed', async () => {
      const { vm, vmAddress } = await restored('--paused');
      const again = await adopt(vm.pid);
      await cairn(['restore', '--resume', vmAddress, '--repo', repo], options);
      expect(await differingFromStored(await groundTruth(again), repo, latest)).toEqual([]);
    });
  });

  it.each([
    ['memory of a file', ['--set-arg', '-mem-path=/dev/shm'], /shared memory/],
    ['KVM', ['--set-arg', '-accel=kvm'], /TCG/],
    ['a QEMU that waits', ['--to', 'unix:/nonexistent'], /that Cairn has started/],
  ])('is refused for %s', async (_, args, why) => {
    expect(await runCairn(['restore', latest, '--repo', repo, '--lazy', ...args], options)).toMatchObject({
      exitCode: 22,
      messages: [expect.objectContaining({ code: 'VM_UNSUPPORTED', message: expect.stringMatching(why) })],
    });
  });
});
