/** --freeze of a domain: the agent's socket is libvirt's. */

import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { FAULT_POINTS } from '../../src/checkpoint/fault-points.js';
import { LabDomain, whyNoLibvirt } from './libvirt-domain.js';
import type { LabMachine } from './machine.js';
import { cairn, runCairn, type CliOptions } from './support/cairn-cli.js';
import { makeExt4, needsRecovery, WRITER } from './support/ext4-disk.js';

const reason = whyNoLibvirt();
if (reason !== '') process.stderr.write(`skipped: VMs of libvirt: ${reason}\n`);
const describeWithLibvirt = reason === '' ? describe : describe.skip;

describeWithLibvirt('a domain whose file systems are frozen for the pause', () => {
  let domain: LabDomain;
  let machine: LabMachine;
  let options: CliOptions;
  let repo = '';
  const take = (...more: string[]): string[] => ['checkpoint', domain.address, '--repo', repo, ...more];

  beforeAll(async () => {
    domain = await LabDomain.define(`cairn-freeze-${process.pid}`, { withAgent: true });
    makeExt4(join(domain.dir, 'disk.qcow2'));
    options = domain.cli;
    repo = join(domain.dir, 'repo');
    await cairn(['init', '--repo', repo], options);
    machine = await domain.start();
  }, 180_000);
  afterAll(async () => {
    machine.qmp.close();
    await domain.remove();
  });

  async function status(): Promise<unknown> {
    const command = '{"execute":"guest-fsfreeze-status"}';
    const reply = await domain.virsh('qemu-agent-command', domain.name, command, '--timeout', '20');
    return (JSON.parse(reply) as { return: unknown }).return;
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

  it('is not paused without an agent', async () => {
    const { exitCode, messages } = await runCairn(take('--freeze'), options);
    expect(exitCode).toBe(22);
    expect(messages.at(-1)).toMatchObject({ code: 'GUEST_AGENT' });
    expect((await runCairn(take('--freeze', '--guest-agent', '/x'), options)).exitCode).toBe(2);
    await machine.guest('start-agent');
    await machine.guest(WRITER);
  }, 120_000);

  it('has everything on its disk at the instant of the checkpoint', async () => {
    const summary = await cairn(take('--freeze', '--disks', 'external'), options);
    expect(summary.frozen_ms).toBeGreaterThan(0);
    expect(needsRecovery(join(domain.dir, 'disk.qcow2'))).toBe(false);
    await expectWrites();
  }, 120_000);

  it.each(['afterFreeze', 'beforeResume'] as const)(
    'goes on writing when Cairn is killed at %s',
    async (point) => {
      const env = { CAIRN_FAULT_POINT: String(FAULT_POINTS[point]) };
      expect(await runCairn(take('--freeze'), { ...options, env })).toMatchObject({ signal: 'SIGKILL' });
      const runtime = join(options.dir, 'runtime');
      while (readdirSync(runtime).some((name) => /^(frozen|paused)-/.test(name))) await sleep(50);
      expect(await domain.state()).toBe('running');
      await expectWrites();
    },
    120_000,
  );

  it('is thawed after a restore, and has the clock of the host when that is asked for', async () => {
    const DAY_S = 86_400;
    // Without that program the agent refuses to set a clock.
    await machine.guest('mkdir -p /sbin; ln -sf /bin/busybox /sbin/hwclock');
    await machine.guest(`date -s @$(( $(date +%s) - ${DAY_S} ))`);
    const { checkpoint_id: id } = await cairn(take('--freeze', '--disks', 'external'), options);
    await machine.waitForProgress();
    machine.qmp.close();
    await domain.stop();
    const bytes = statSync(join(domain.dir, 'diary.log')).size;
    const restored = await cairn(['restore', String(id), '--repo', repo, '--set-time'], options);
    expect(restored).toMatchObject({ running: true });
    for (const failure of ['frozen_because', 'notes']) expect(restored).not.toHaveProperty(failure);
    machine = await domain.adopt();
    await machine.waitForTick(1, 60_000, bytes);
    await expectWrites();
    const behindS = Date.now() / 1000 - Number(await machine.guest('date +%s'));
    expect(Math.abs(behindS)).toBeLessThan(DAY_S / 2);
  }, 180_000);
});
