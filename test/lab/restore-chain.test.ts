import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { CairnProcess, cairn, isSummary } from './support/cairn-cli.js';
import { GENTLE_DISK_LOAD, gentleLoad } from './support/guest-loads.js';
import { groundTruth } from './support/ground-truth.js';
import { differingFromStored } from './support/oracle.js';
import { qemuProgram, type QemuVersion } from './support/lab-files.js';

const CHAIN_LENGTH = 50;

describe.each<QemuVersion>(['7.2', '10.0'])('a chain of fifty under QEMU %s', (qemu) => {
  let machine: LabMachine;
  let options: { dir: string };
  let repo = '';
  const ids: string[] = [];
  const ticksBefore: number[] = [];
  let checksum = '';

  beforeAll(async () => {
    machine = await LabMachine.start({
      name: 'chain',
      qemu,
      memoryMib: 192,
      devices: ['disk', 'net', 'balloon', 'vga'],
    });
    options = { dir: machine.dir };
    repo = join(machine.dir, 'repo');
    await cairn(['init', '--repo', repo], options);
    await machine.guest('lab fill 32');
    checksum = await machine.guest('lab sum');
    await machine.guest(gentleLoad(8));
    await machine.guest(GENTLE_DISK_LOAD);
    const watch = new CairnProcess(
      ['watch', machine.address, '--repo', repo, '--every', '0.2', '--count', `${CHAIN_LENGTH}`],
      options,
    );
    for (let i = 0; i < CHAIN_LENGTH; i++) {
      ids.push(String((await watch.message(isSummary, i)).checkpoint_id));
      ticksBefore.push(machine.lastTick());
    }
    expect(await watch.ended).toMatchObject({ exitCode: 0 });
    await machine.kill();
  }, 300_000);
  afterAll(() => machine.destroy());

  it.each([
    ['the first', 0],
    ['a middle one', CHAIN_LENGTH / 2],
    ['the last', CHAIN_LENGTH - 1],
  ])('goes on from %s: counter, open file, data and disk', async (_, position) => {
    const bytes = machine.diary().length;
    const { pid } = await cairn(['restore', ids[position]!, '--repo', repo], options);
    const again = await LabMachine.adopt('chain', machine.dir, Number(pid));
    try {
      const first = await again.waitForTick(1, 60_000, bytes);
      // The counter is the checkpoint's: no older, and at most what was printed while the checkpoint was being finished.
      expect(first.tick).toBeLessThanOrEqual(ticksBefore[position]! + 1);
      if (position > 0) expect(first.tick).toBeGreaterThan(ticksBefore[position - 1]! - 20);
      await again.waitForTick(first.tick + 5, 60_000, bytes);
      expect(again.ticks(bytes).every(({ tick, lines }) => tick === lines)).toBe(true);
      expect(await again.guest('lab sum')).toBe(checksum);
      expect(
        await again.guest('dd if=/dev/vda of=/dev/null bs=1M count=16 iflag=direct 2>&1 && echo readable'),
      ).toContain('readable');
    } finally {
      await again.kill();
    }
  });

  it('is byte for byte the checkpoint when it is restored paused', async () => {
    const id = ids[CHAIN_LENGTH - 1]!;
    const { pid, running } = await cairn(['restore', id, '--repo', repo, '--paused'], options);
    expect(running).toBe(false);
    const again = await LabMachine.adopt('chain', machine.dir, Number(pid));
    try {
      expect(await differingFromStored(await groundTruth(again), repo, id)).toEqual([]);
    } finally {
      await again.kill();
    }
  });

  it('can be continued after a restore: the next checkpoint adds to the chain', async () => {
    const { pid } = await cairn(['restore', 'latest', '--repo', repo], options);
    const again = await LabMachine.adopt('chain', machine.dir, Number(pid));
    try {
      await again.waitForProgress();
      const summary = await cairn(['checkpoint', again.address, '--repo', repo], options);
      expect(summary).toMatchObject({ kind: 'incremental', parent_id: ids[CHAIN_LENGTH - 1]! });
      expect(summary.compare_reason).not.toBe('');
      // What the chain already has is not stored again.
      expect(Number(summary.stored_bytes)).toBeLessThan(192 << 18);
    } finally {
      await again.kill();
    }
  });

  it('is loaded by stock QEMU from an export', async () => {
    const path = join(machine.dir, 'exported.mig');
    await cairn(['export', ids[CHAIN_LENGTH - 1]!, path, '--repo', repo, '--format', 'qemu'], options);
    const loaded = await LabMachine.start({
      name: 'chain',
      qemu,
      dir: machine.dir,
      memoryMib: 192,
      devices: ['disk', 'net', 'balloon', 'vga'],
      noWait: true,
      extraArgs: ['-incoming', `exec:cat ${path}`],
    });
    try {
      await loaded.waitForProgress();
      expect(await loaded.guest('lab sum')).toBe(checksum);
    } finally {
      await loaded.kill();
    }
    expect(qemuProgram(qemu).path).toContain('qemu-system-x86_64');
  });
});
