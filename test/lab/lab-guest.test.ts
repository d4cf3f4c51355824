import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { LabMachine } from './machine.js';
import { differingPages, groundTruth } from './support/ground-truth.js';
import type { QemuVersion } from './support/lab-files.js';

describe.each<QemuVersion>(['7.2', '10.0'])('the lab guest under QEMU %s', (qemu) => {
  let machine: LabMachine;
  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'lab', qemu, devices: ['disk', 'net', 'balloon', 'vga'] });
  });
  afterAll(() => machine.destroy());

  it('counts in memory and in an open file', async () => {
    await machine.waitForProgress();
    expect(machine.ticks().every(({ tick, lines }) => tick === lines)).toBe(true);
  });

  it('does what it is told', async () => {
    expect(await machine.guest('echo hello; uname -s')).toContain('hello\nLinux');
    await expect(machine.guest('false')).rejects.toThrow('failed');
    expect(await machine.guest('ls /dev/vda /sys/class/net')).toContain('eth0');
  });

  it('shows the same memory to two independent ways of reading it, and another after it ran under load', async () => {
    await machine.guest('lab memory 16');
    await machine.qmp.command('stop');
    const physical = join(machine.dir, 'physical');
    await machine.qmp.command('pmemsave', { val: 0, size: 256 << 20, filename: physical });
    const first = await groundTruth(machine);
    const ram = first.get('pc.ram')!;
    expect(ram.length).toBe(256 << 20);
    // Below 1 MiB guest-physical addresses show ROM and video memory in places; above they are pc.ram.
    expect(
      readFileSync(physical)
        .subarray(1 << 20)
        .equals(ram.subarray(1 << 20)),
    ).toBe(true);
    await machine.qmp.command('cont');
    await machine.waitForProgress();
    await machine.qmp.command('stop');
    expect(differingPages(first, await groundTruth(machine))).not.toEqual([]);
    await machine.qmp.command('cont');
    await machine.waitForProgress();
  });
});
