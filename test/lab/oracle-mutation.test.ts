/** The oracle can fail: a tracker that keeps dirty pages to itself is found out on a real VM. */

import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { openSession } from '../../src/checkpoint/open-session.js';
import type { CheckpointSession } from '../../src/checkpoint/session.js';
import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import { Repository, openBackend } from '../../src/index.js';
import { kvmHypervisor } from '../../adapters/kvm/kvm-hypervisor.js';
import { ExactSession } from '../truth/exact-session.js';
import { LabMachine } from './machine.js';
import { groundTruth } from './support/ground-truth.js';
import { tampered } from './support/lossy-tracker.js';
import { differingFromStored } from './support/oracle.js';

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
    session = await openSession(
      new HypervisorRegistry([tampered(kvmHypervisor, tampering)]),
      machine.address,
      {
        repository: await Repository.init(openBackend(repo)),
        runtimeDir: join(machine.dir, 'run'),
        memoryOnly: true,
      },
    );
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
    const differing = await differingFromStored(await groundTruth(machine), repo, checkpointId);
    if (isLossy) expect(differing.length).toBeGreaterThan(0);
    else expect(differing).toEqual([]);
  });
});

it('the oracle of the soak finds pages that a tracker kept to itself, in each checkpoint', async () => {
  const tampering = { isOn: false };
  const machine = await LabMachine.start({ name: 'mutation', memoryMib: 104 });
  try {
    await machine.guest('lab memory 8');
    const session = await ExactSession.open(
      machine,
      { tracker: 'auto', maxPauseMs: 5, repository: join(machine.dir, 'repo') },
      tampered(kvmHypervisor, tampering),
    );
    const differing: number[] = [];
    for (let i = 0; i < 4; i++) {
      tampering.isOn = i >= 2;
      differing.push((await (await session.checkpoint()).differing).length);
      await machine.waitForProgress();
    }
    await session.close();
    expect(differing.slice(0, 2)).toEqual([0, 0]);
    expect(differing[2]).toBeGreaterThan(0);
    expect(differing[3]).toBeGreaterThan(0);
  } finally {
    await machine.destroy();
  }
});
