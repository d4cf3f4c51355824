import { closeSync, mkdtempSync, openSync, readdirSync, readlinkSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, describe, expect, it } from '@jest/globals';

import { attachKvm } from '../../adapters/kvm/attach.js';
import type { KvmVm } from '../../adapters/kvm/kvm-vm.js';
import type { DirtyTracker, Harvest } from '../../src/hypervisor/dirty-tracker.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { LabMachine, type LabMachineOptions } from './machine.js';
import { GUEST_COMMAND_LINE } from './support/lab-files.js';

/** Debian's kernel clears pages when it hands them out, which hides what a balloon does to them. */
const NO_CLEARING = ['-append', `${GUEST_COMMAND_LINE} init_on_alloc=0 init_on_free=0`];
const BALLOON_MIB = [256, 140, 140, 256, 180, 256];

interface Region {
  readonly firstPage: number;
  readonly pageCount: number;
  readonly host: number;
}

const cleanUp: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const undo of cleanUp.splice(0).reverse()) await undo();
});

async function start(
  options: Partial<LabMachineOptions> = {},
): Promise<{ machine: LabMachine; runtimeDir: string }> {
  const runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-tracker-'));
  cleanUp.push(() => rmSync(runtimeDir, { recursive: true }));
  const machine = await LabMachine.start({ name: 'tracker', devices: ['disk', 'balloon'], ...options });
  cleanUp.push(() => machine.destroy());
  return { machine, runtimeDir };
}

/** A Cairn process, as far as the tracker goes. */
async function attach(
  machine: LabMachine,
  runtimeDir: string,
): Promise<{ vm: KvmVm; tracker: DirtyTracker }> {
  const vm = await attachKvm(machine.address, { runtimeDir });
  await vm.memory.layout();
  const tracker = vm.memory.tracker('pagemap-scan');
  await tracker.start();
  return { vm, tracker };
}

/** All regions, straight from the process. */
function memoryOf(machine: LabMachine, vm: KvmVm): readonly Buffer[] {
  const { regions } = vm.memory.reader().options as unknown as { regions: readonly Region[] };
  const memory = openSync(`/proc/${machine.pid}/mem`, 'r');
  try {
    return regions.map(({ host, pageCount }) => {
      const bytes = Buffer.alloc(pageCount * PAGE_SIZE_BYTES);
      for (let at = 0; at < bytes.length;)
        at += readSync(memory, bytes, at, Math.min(1 << 24, bytes.length - at), host + at);
      return bytes;
    });
  } finally {
    closeSync(memory);
  }
}

interface Verdict {
  readonly changed: number;
  readonly missed: number;
  readonly wronglyAbsent: number;
}

function judge(
  vm: KvmVm,
  before: readonly Buffer[],
  after: readonly Buffer[],
  { dirty, absent }: Harvest,
): Verdict {
  const { regions } = vm.memory.reader().options as unknown as { regions: readonly Region[] };
  const zero = Buffer.alloc(PAGE_SIZE_BYTES);
  const verdict = { changed: 0, missed: 0, wronglyAbsent: 0 };
  regions.forEach(({ firstPage, pageCount }, i) => {
    for (let page = 0; page < pageCount; page++) {
      const from = page * PAGE_SIZE_BYTES;
      const to = from + PAGE_SIZE_BYTES;
      if (before[i]!.compare(after[i]!, from, to, from, to) !== 0) {
        verdict.changed++;
        if (!dirty.has(firstPage + page)) verdict.missed++;
      }
      if (absent.has(firstPage + page) && after[i]!.compare(zero, 0, PAGE_SIZE_BYTES, from, to) !== 0)
        verdict.wronglyAbsent++;
    }
  });
  return verdict;
}

/** Stops the VM, harvests and takes the truth, continues it. */
async function stoppedHarvest(
  machine: LabMachine,
  vm: KvmVm,
  tracker: DirtyTracker,
): Promise<{ harvest: Harvest; memory: readonly Buffer[] }> {
  await vm.runState.pause();
  await vm.deviceState.save();
  const harvest = tracker.collect();
  const memory = memoryOf(machine, vm);
  await vm.runState.resume();
  return { harvest, memory };
}

async function balloonRounds(
  machine: LabMachine,
  vm: KvmVm,
  tracker: DirtyTracker,
): Promise<readonly Verdict[]> {
  await machine.guest('dd if=/dev/urandom of=/tmp/x bs=1M count=40; rm /tmp/x');
  let { memory } = await stoppedHarvest(machine, vm, tracker);
  const verdicts: Verdict[] = [];
  for (const mib of BALLOON_MIB) {
    await machine.qmp.command('balloon', { value: mib << 20 });
    await sleep(1500);
    const next = await stoppedHarvest(machine, vm, tracker);
    verdicts.push(judge(vm, memory, next.memory, next.harvest));
    memory = next.memory;
  }
  return verdicts;
}

function userfaultfds(pid: number): readonly string[] {
  return readdirSync(`/proc/${pid}/fd`).filter(
    (name) => readlinkSync(`/proc/${pid}/fd/${name}`) === 'anon_inode:[userfaultfd]',
  );
}

describe('the pagemap-scan tracker', () => {
  it.each(['7.2', '10.0'] as const)('misses no change under load and ballooning (QEMU %s)', async (qemu) => {
    const { machine, runtimeDir } = await start({ qemu, smp: 2, extraArgs: NO_CLEARING });
    const { vm, tracker } = await attach(machine, runtimeDir);
    cleanUp.push(() => vm.close());
    await machine.guest('lab memory 16');
    await machine.guest('lab disk');
    const verdicts = await balloonRounds(machine, vm, tracker);
    expect(verdicts).toEqual(verdicts.map(({ changed }) => ({ changed, missed: 0, wronglyAbsent: 0 })));
    expect(Math.min(...verdicts.map(({ changed }) => changed))).toBeGreaterThan(0);
    tracker.close();
  });

  it('misses no change across a second process and a reset of the guest', async () => {
    const { machine, runtimeDir } = await start();
    const first = await attach(machine, runtimeDir);
    const { memory: before } = await stoppedHarvest(machine, first.vm, first.tracker);
    const { token } = first.tracker;
    first.tracker.close();
    await first.vm.close();

    const diaryBytes = machine.diary().length;
    await machine.qmp.command('system_reset');
    await machine.waitForTick(1, 120_000, diaryBytes);

    const second = await attach(machine, runtimeDir);
    cleanUp.push(() => second.vm.close());
    expect(second.tracker.token).toBe(token);
    const { harvest, memory } = await stoppedHarvest(machine, second.vm, second.tracker);
    const verdict = judge(second.vm, before, memory, harvest);
    expect(verdict).toMatchObject({ missed: 0, wronglyAbsent: 0 });
    expect(verdict.changed).toBeGreaterThan(1000);
    second.tracker.close();
  });

  it('opens a descriptor of its own, under another token, when the runtime folder is lost', async () => {
    const { machine, runtimeDir } = await start();
    const first = await attach(machine, runtimeDir);
    const { token } = first.tracker;
    first.tracker.close();
    await first.vm.close();
    for (const name of readdirSync(runtimeDir)) rmSync(join(runtimeDir, name));
    const second = await attach(machine, runtimeDir);
    cleanUp.push(() => second.vm.close());
    expect(second.tracker.token).not.toBe(token);
    expect(userfaultfds(machine.pid)).toHaveLength(1);
    second.tracker.collect();
    await machine.waitForProgress();
    expect(second.tracker.collect().dirty.count()).toBeGreaterThan(0);
    second.tracker.close();
  });

  it('never shares its record with a Cairn that has another runtime folder', async () => {
    const { machine, runtimeDir } = await start();
    const other = { runtimeDir: mkdtempSync(join(tmpdir(), 'cairn-tracker-')) };
    cleanUp.push(() => rmSync(other.runtimeDir, { recursive: true }));
    const first = await attach(machine, runtimeDir);
    first.tracker.collect();
    await first.vm.close();

    const second = await attach(machine, other.runtimeDir);
    await machine.waitForProgress();
    second.tracker.collect();
    // What the second has cleared, the first must not take for unchanged.
    expect(() => first.tracker.collect()).toThrow(expect.objectContaining({ code: 'TRACKER_OFF' }));
    const { token } = first.tracker;
    first.tracker.close();
    await second.vm.close();

    const third = await attach(machine, runtimeDir);
    cleanUp.push(() => third.vm.close());
    expect(third.tracker.token).not.toBe(token);
    expect(() => second.tracker.collect()).toThrow(expect.objectContaining({ code: 'TRACKER_OFF' }));
    expect(userfaultfds(machine.pid)).toHaveLength(1);
    second.tracker.close();
    third.tracker.close();
  });

  it('leaves nothing behind in QEMU when it is stopped, and a collect without it fails', async () => {
    const { machine, runtimeDir } = await start();
    const { vm, tracker } = await attach(machine, runtimeDir);
    cleanUp.push(() => vm.close());
    const rival = vm.memory.tracker('pagemap-scan');
    await rival.start();
    await tracker.stop();
    expect(userfaultfds(machine.pid)).toEqual([]);
    expect(() => rival.collect()).toThrow(/not tracked/);
    rival.close();
    await machine.waitForProgress();
  });

  it('arms and disarms a busy guest many times without disturbing it', async () => {
    const { machine, runtimeDir } = await start({ smp: 2 });
    await machine.guest('lab memory 16');
    await machine.guest('lab disk');
    const { vm, tracker } = await attach(machine, runtimeDir);
    cleanUp.push(() => vm.close());
    await tracker.stop();
    for (let i = 0; i < 100; i++) {
      const again = vm.memory.tracker('pagemap-scan');
      await again.start();
      await again.stop();
    }
    expect(userfaultfds(machine.pid)).toEqual([]);
    await machine.waitForProgress();
    expect(await machine.guest('echo well')).toContain('well');
  });

  it('says that a VM which has ended is gone, instead of finding nothing', async () => {
    const { machine, runtimeDir } = await start();
    const { vm, tracker } = await attach(machine, runtimeDir);
    await machine.kill();
    expect(() => tracker.collect()).toThrow(/has ended/);
    await expect(vm.memory.layout()).rejects.toMatchObject({ code: 'VM_GONE' });
    tracker.close();
    await vm.close();
  });
});

describe('memory shared through a file, with a balloon', () => {
  it('is left to comparing all pages: the kernel does not report what the balloon takes away', async () => {
    const { machine, runtimeDir } = await start({
      extraArgs: [
        ...[
          '-object',
          'memory-backend-memfd,id=shared,size=256M,share=on',
          '-machine',
          'memory-backend=shared',
        ],
        ...NO_CLEARING,
      ],
    });
    const { vm, tracker } = await attach(machine, runtimeDir);
    cleanUp.push(() => vm.close());
    expect((await vm.inspect()).hazards).toContainEqual(
      expect.objectContaining({ code: 'BALLOON_ON_FILE', effect: 'compare' }),
    );
    // Should this ever become zero, the kernel has changed and the hazard can go.
    const verdicts = await balloonRounds(machine, vm, tracker);
    expect(Math.max(...verdicts.map(({ missed }) => missed))).toBeGreaterThan(0);
    expect(verdicts.filter(({ wronglyAbsent }) => wronglyAbsent > 0)).toEqual([]);
    tracker.close();
  });

  it('is trusted to the tracker without one, and holes of its file are not read', async () => {
    const { machine, runtimeDir } = await start({
      devices: ['disk'],
      extraArgs: [
        '-object',
        'memory-backend-memfd,id=shared,size=256M,share=on',
        '-machine',
        'memory-backend=shared',
      ],
    });
    const { vm, tracker } = await attach(machine, runtimeDir);
    cleanUp.push(() => vm.close());
    expect((await vm.inspect()).hazards.filter(({ effect }) => effect !== 'note')).toEqual([]);
    await machine.guest('lab memory 16');
    const { harvest, memory } = await stoppedHarvest(machine, vm, tracker);
    expect(harvest.absent.count()).toBeGreaterThan(10_000);
    await machine.waitForProgress();
    const next = await stoppedHarvest(machine, vm, tracker);
    const verdict = judge(vm, memory, next.memory, next.harvest);
    expect(verdict).toMatchObject({ missed: 0, wronglyAbsent: 0 });
    expect(verdict.changed).toBeGreaterThan(0);
    tracker.close();
  });
});
