import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, describe, expect, it } from '@jest/globals';

import { attachKvm } from '../../adapters/kvm/attach.js';
import {
  unusedDescriptors,
  writeTrackingDescriptors,
} from '../../adapters/kvm/trackers/pagemap-scan/arming.js';
import type { DirtyTracker } from '../../src/hypervisor/dirty-tracker.js';
import { LabMachine, type LabMachineOptions } from './machine.js';
import { killTracers } from './support/kill-tracers.js';
import { ThreadWatch } from './support/thread-watch.js';

/** More than a tracer makes. */
const MAX_CALLS = 60;

const cleanUp: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  delete process.env.CAIRN_TRACER_FAULT_POINT;
  for (const undo of cleanUp.splice(0).reverse()) await undo();
});

async function start(options: Partial<LabMachineOptions> = {}): Promise<LabMachine> {
  const machine = await LabMachine.start({
    name: 'tracer',
    smp: 2,
    devices: ['disk', 'balloon'],
    ...options,
  });
  cleanUp.push(() => machine.destroy());
  return machine;
}

interface Cairn {
  readonly tracker: DirtyTracker;
  /** As its end does. */
  close(): Promise<void>;
}

function newRuntimeDir(): string {
  const dir = mkdtempSync(join(tmpdir(), 'cairn-tracer-'));
  cleanUp.push(() => rmSync(dir, { recursive: true }));
  return dir;
}

/** What a Cairn process has in hand before it arms. */
async function attach(machine: LabMachine, runtimeDir: string): Promise<Cairn> {
  const vm = await attachKvm(machine.address, { runtimeDir });
  cleanUp.push(() => vm.close());
  await vm.memory.layout();
  return { tracker: vm.memory.tracker('pagemap-scan'), close: () => vm.close() };
}

/** @returns how many tracers were killed until one was not */
async function killAtEachCall(
  work: () => Promise<void>,
  each: () => Promise<void>,
  before: () => Promise<void> = () => Promise.resolve(),
): Promise<number> {
  for (let call = 1; call < MAX_CALLS; call++) {
    await before();
    process.env.CAIRN_TRACER_FAULT_POINT = String(call);
    const outcome = await work().catch((error: unknown) => error as Error);
    delete process.env.CAIRN_TRACER_FAULT_POINT;
    await each();
    if (outcome === undefined) return call - 1;
    expect(outcome).toMatchObject({ code: 'TRACKER_UNAVAILABLE', retryable: true });
  }
  throw new Error('no tracer came to its end');
}

describe.each(['7.2', '10.0'] as const)('a tracer of QEMU %s that is killed', (qemu) => {
  it('after any of its calls, leaves QEMU and the guest as they were', async () => {
    const machine = await start({ qemu });
    await machine.guest('lab fill 16');
    const sum = await machine.guest('lab sum');
    await machine.guest('lab memory 8 2000');
    const watch = await ThreadWatch.start(machine.pid);
    const expectUntouched = async (): Promise<void> => {
      expect(await watch.faults()).toEqual([]);
      await machine.waitForProgress();
    };
    const runtimeDir = newRuntimeDir();
    const first = await attach(machine, runtimeDir);
    const { tracker } = first;
    expect(await killAtEachCall(() => tracker.start(), expectUntouched)).toBeGreaterThan(10);
    expect(tracker.collect().dirty.count()).toBeGreaterThan(0);
    expect(writeTrackingDescriptors(machine.pid)).toHaveLength(1);
    await tracker.stop();
    let cairn = first;
    const arm = async (): Promise<void> => {
      await cairn.close();
      cairn = await attach(machine, runtimeDir);
      await cairn.tracker.start();
    };
    expect(await killAtEachCall(() => cairn.tracker.stop(), expectUntouched, arm)).toBeGreaterThan(10);
    expect(writeTrackingDescriptors(machine.pid)).toEqual([]);
    expect(unusedDescriptors(machine.pid)).toEqual([]);
    expect(await machine.guest('lab sum')).toBe(sum);
  }, 580_000);

  it('at random, leaves QEMU and the guest as they were', async () => {
    const machine = await start({ qemu });
    const { counted, faults } = await killTracers(machine, { count: 40 });
    expect(faults).toEqual([]);
    expect(counted.kills).toBe(40);
  }, 580_000);
});

it('a QEMU in its own sandbox is armed', async () => {
  const sandbox = 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny';
  const machine = await start({ extraArgs: ['-sandbox', sandbox] });
  const { tracker } = await attach(machine, newRuntimeDir());
  await tracker.start();
  expect(tracker.collect().dirty.count()).toBeGreaterThan(0);
  await tracker.stop();
  expect(writeTrackingDescriptors(machine.pid)).toEqual([]);
  await machine.waitForProgress();
}, 120_000);
