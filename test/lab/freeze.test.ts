/** --freeze with the real qemu-ga in the guest, and an ext4 whose own superblock tells whether it was frozen. */

import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { SocketAgent } from '../../adapters/kvm/run/guest-agent/socket-agent.js';
import { FAULT_POINTS } from '../../src/checkpoint/fault-points.js';
import { LabMachine } from './machine.js';
import { CairnProcess, cairn, runCairn, type CliOptions } from './support/cairn-cli.js';
import { makeExt4, needsRecovery, WRITER } from './support/ext4-disk.js';
import { scratchDir } from './support/lab-files.js';
import { PauseHold } from './support/oracle.js';

describe('a guest whose file systems are frozen for the pause', () => {
  let machine: LabMachine;
  let options: CliOptions;
  let repo = '';
  const take = (...more: string[]): string[] => ['checkpoint', machine.address, '--repo', repo, ...more];

  beforeAll(async () => {
    const dir = scratchDir('freeze');
    makeExt4(join(dir, 'disk.qcow2'));
    machine = await LabMachine.start({ name: 'freeze', memoryMib: 192, devices: ['disk', 'agent'], dir });
    options = { dir };
    repo = join(dir, 'repo');
    await cairn(['init', '--repo', repo], options);
    await machine.guest('start-agent');
    await machine.guest(WRITER);
  }, 180_000);
  afterAll(() => machine.destroy());

  async function status(): Promise<unknown> {
    const agent = new SocketAgent(machine.agentPath);
    try {
      return await agent.command('guest-fsfreeze-status', 10_000);
    } finally {
      agent.close();
    }
  }

  /** It writes to the disk and gets it written. */
  async function expectWrites(): Promise<void> {
    expect(await status()).toBe('thawed');
    const before = Number(await machine.guest('cat /mnt/count'));
    for (let i = 0; i < 200; i++) {
      if (Number(await machine.guest('cat /mnt/count')) > before) return;
      await sleep(50);
    }
    throw new Error('the guest does not write any more');
  }

  function markers(): readonly string[] {
    return readdirSync(join(options.dir, 'runtime')).filter((name) => /^(frozen|paused)-/.test(name));
  }

  async function untilThawed(): Promise<void> {
    while (markers().length > 0) await sleep(50);
  }

  it('has everything on its disk at the instant of the checkpoint, and not without', async () => {
    for (const isFrozen of [false, true]) {
      const summary = await cairn(take('--disks', 'external', ...(isFrozen ? ['--freeze'] : [])), options);
      expect(Number(summary.frozen_ms) > 0).toBe(isFrozen);
      const manifest = await cairn(['show', String(summary.checkpoint_id), '--repo', repo], options);
      const [{ path }] = manifest.disks as [{ path: string }];
      expect(needsRecovery(path)).toBe(!isFrozen);
      expect(manifest.frozen).toEqual(isFrozen ? { file_system_count: 1 } : undefined);
      await expectWrites();
    }
    expect(markers()).toEqual([]);
  }, 120_000);

  it.each(['afterFreeze', 'afterPause', 'beforeResume', 'afterResume'] as const)(
    'goes on writing when Cairn is killed at %s',
    async (point) => {
      const env = { CAIRN_FAULT_POINT: String(FAULT_POINTS[point]) };
      expect(await runCairn(take('--freeze'), { ...options, env })).toMatchObject({ signal: 'SIGKILL' });
      await untilThawed();
      expect(await machine.qmp.status()).toBe('running');
      await expectWrites();
    },
    120_000,
  );

  it('is thawed by the next Cairn when the guard was killed too', async () => {
    const hold = new PauseHold(machine.dir);
    const taking = new CairnProcess(take('--freeze', '--hook', hold.command), options);
    await hold.reached(taking);
    for (const pid of childrenOf(taking.child.pid!)) process.kill(pid, 'SIGKILL');
    taking.child.kill('SIGKILL');
    await taking.ended;
    hold.release();
    expect(markers()).toHaveLength(2);
    await cairn(['doctor', machine.address], options);
    expect(markers()).toEqual([]);
    await expectWrites();
  }, 120_000);

  it('is thawed when the checkpoint fails', async () => {
    const { exitCode } = await runCairn(take('--freeze', '--hook', '[ "$CAIRN_PHASE" != paused ]'), options);
    expect(exitCode).not.toBe(0);
    await expectWrites();
  }, 120_000);

  it('is not paused when its agent does not answer, or is not to be found', async () => {
    await machine.guest('kill -STOP $(cat /tmp/qga.pid)');
    const silent = await runCairn(take('--freeze', '2'), options);
    expect(silent).toMatchObject({ exitCode: 22 });
    expect(silent.messages.at(-1)).toMatchObject({ code: 'GUEST_AGENT' });
    await machine.guest('kill -CONT $(cat /tmp/qga.pid)');
    const elsewhere = await runCairn(take('--freeze', '--guest-agent', join(options.dir, 'none')), options);
    expect(elsewhere.messages.at(-1)).toMatchObject({ code: 'GUEST_AGENT' });
    await expectWrites();
  }, 120_000);

  it('is thawed after a restore, unless it is left paused', async () => {
    const { checkpoint_id: id } = await cairn(take('--freeze', '--disks', 'external'), options);
    await expectWrites();
    await machine.kill();

    const paused = await cairn(['restore', String(id), '--repo', repo, '--paused'], options);
    expect(paused).toMatchObject({ running: false, frozen_because: expect.any(String) });
    machine = await LabMachine.adopt('freeze', options.dir, Number(paused.pid));
    await machine.qmp.command('cont');
    await machine.waitForProgress();
    // So the thaw is needed: the memory is that of a frozen guest.
    expect(await status()).toBe('frozen');
    await machine.kill();

    const running = await cairn(['restore', String(id), '--repo', repo], options);
    expect(running).toMatchObject({ running: true });
    expect(running).not.toHaveProperty('frozen_because');
    machine = await LabMachine.adopt('freeze', options.dir, Number(running.pid));
    await expectWrites();
  }, 180_000);

  it('has the clock of its checkpoint after a restore, and that of the host when asked', async () => {
    const DAY_S = 86_400;
    const behindS = async (): Promise<number> => Date.now() / 1000 - Number(await machine.guest('date +%s'));
    // Without that program the agent refuses to set a clock.
    await machine.guest('mkdir -p /sbin; ln -sf /bin/busybox /sbin/hwclock');
    await machine.guest(`date -s @$(( $(date +%s) - ${DAY_S} ))`);
    expect(await behindS()).toBeGreaterThan(DAY_S / 2);
    const { checkpoint_id: id } = await cairn(take('--disks', 'external'), options);
    for (const isAsked of [false, true]) {
      await machine.kill();
      const more = isAsked ? ['--set-time'] : [];
      const restored = await cairn(['restore', String(id), '--repo', repo, ...more], options);
      expect(restored).not.toHaveProperty('notes');
      machine = await LabMachine.adopt('freeze', options.dir, Number(restored.pid));
      await machine.waitForProgress();
      if (isAsked) expect(Math.abs(await behindS())).toBeLessThan(DAY_S / 2);
      else expect(await behindS()).toBeGreaterThan(DAY_S / 2);
    }
    await machine.kill();
    const paused = await cairn(['restore', String(id), '--repo', repo, '--set-time', '--paused'], options);
    expect(paused.notes).toEqual([expect.stringContaining('guest-set-time')]);
    machine = await LabMachine.adopt('freeze', options.dir, Number(paused.pid));
  }, 180_000);
});

function childrenOf(pid: number): readonly number[] {
  const path = `/proc/${pid}/task/${pid}/children`;
  const listed = existsSync(path) ? execFileSync('cat', [path], { encoding: 'latin1' }) : '';
  return listed
    .split(' ')
    .filter((word) => word.trim() !== '')
    .map(Number);
}
