/** The oracle can fail: a tracker that keeps dirty pages to itself is found out on a real VM. */

import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { CheckpointSession } from '../../src/checkpoint/session.js';
import type { DirtyTracker } from '../../src/hypervisor/dirty-tracker.js';
import { HypervisorRegistry, type Hypervisor } from '../../src/hypervisor/hypervisor.js';
import type { Vm } from '../../src/hypervisor/vm.js';
import { Repository, openBackend } from '../../src/index.js';
import { kvmHypervisor } from '../../adapters/kvm/kvm-hypervisor.js';
import { LabMachine } from './machine.js';
import { differingPages, groundTruth } from './support/ground-truth.js';
import { readCheckpoint } from './support/oracle.js';

/** Of every so many dirty pages one is not reported. */
const KEEPS_ONE_IN = 8;

describe.each([
  ['an honest tracker', false],
  ['a tracker that keeps every eighth dirty page to itself', true],
] as const)('a checkpoint by %s', (_, isLossy) => {
  let machine: LabMachine;
  let session: CheckpointSession;
  let repo = '';
  const tampering = { isOn: false };

  beforeAll(async () => {
    machine = await LabMachine.start({ name: 'mutation', memoryMib: 128 });
    repo = join(machine.dir, 'repo');
    await machine.guest('lab memory 8');
    session = await CheckpointSession.open({
      repository: await Repository.init(openBackend(repo)),
      hypervisors: new HypervisorRegistry([tampered(kvmHypervisor, tampering)]),
      vm: machine.address,
      runtimeDir: join(machine.dir, 'run'),
      memoryOnly: true,
    });
  });
  afterAll(async () => {
    await session.close();
    await machine.destroy();
  });

  it(`${isLossy ? 'differs from' : 'equals'} what the VM's memory held`, async () => {
    await session.checkpoint();
    await machine.waitForProgress();
    await machine.qmp.command('stop');
    tampering.isOn = isLossy;
    const { checkpointId, compareReason } = await session.checkpoint();
    expect(compareReason).toBe('');
    const differing = differingPages(await groundTruth(machine), await readCheckpoint(repo, checkpointId));
    if (isLossy) expect(differing.length).toBeGreaterThan(0);
    else expect(differing).toEqual([]);
  });
});

function tampered(hypervisor: Hypervisor, tampering: { readonly isOn: boolean }): Hypervisor {
  return instead(hypervisor, {
    attach: async (address, options) => {
      const vm: Vm = await hypervisor.attach(address, options);
      return instead(vm, { tracker: (kind) => lossy(vm.tracker(kind), tampering) });
    },
  });
}

function lossy(tracker: DirtyTracker, tampering: { readonly isOn: boolean }): DirtyTracker {
  return instead(tracker, {
    collect: () => {
      const { dirty, absent } = tracker.collect();
      if (!tampering.isOn) return { dirty, absent };
      const kept = new DirtyBitmap(dirty.pageCount);
      let seen = 0;
      for (let page = 0; page < dirty.pageCount; page++)
        if (dirty.has(page) && ++seen % KEEPS_ONE_IN !== 0) kept.set(page);
      return { dirty: kept, absent };
    },
  });
}

/** `original` with some methods replaced; the others run on the original, private fields included. */
function instead<T extends object>(original: T, changes: Partial<T>): T {
  return new Proxy(original, {
    get(target, name) {
      const value: unknown = Reflect.get(name in changes ? changes : target, name);
      return typeof value === 'function'
        ? (value.bind(name in changes ? changes : target) as unknown)
        : value;
    },
  });
}
