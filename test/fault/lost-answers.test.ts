/**
 * A call to the storage is carried out or not, its answer is lost, and for a while nobody can be asked. Afterwards the manifests, the packs
 * that they need, the disk snapshots and what the caller was told must agree.
 *
 *     told                    the manifest
 *     committed               is there
 *     CHECKPOINT_UNCERTAIN    may be there
 *     anything else           is not there
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';

import { openSession } from '../../src/checkpoint/open-session.js';
import type { CheckpointSession } from '../../src/checkpoint/session.js';
import { isCheckpointError } from '../../src/errors.js';
import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';
import { Calendar } from '../../src/repository/forget/calendar.js';
import type { ChainWriter } from '../../src/repository/chain-writer.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { FakeGuest } from '../support/fake-guest.js';
import { FAKE_TRACKER, FakeHypervisor } from '../support/fake-vm.js';
import { FaultyBackend, type FaultPlan } from '../support/faulty-backend.js';
import { IDENTITY, ModelVm, mustReadBack, readBack, type Expected } from '../unit/repository-model.js';

/** Without an outage the next call already knows; with 1, one look fails; with more, the undoing fails as well. */
const PLANS: readonly Omit<FaultPlan, 'atCall'>[] = (['fail', 'lost-reply'] as const).flatMap((mode) =>
  [0, 1, 1000].map((outage) => ({ mode, outage })),
);

/** What was told of the checkpoints that were asked for. */
interface Told {
  readonly committed: Expected[];
  readonly uncertain: Omit<Expected, 'id'>[];
}

async function mustAgree(repository: Repository, told: Told): Promise<void> {
  const { manifests, damaged } = await repository.checkpoints();
  expect(damaged).toEqual([]);
  expect((await verify(repository)).problems).toEqual([]);
  for (const one of told.committed) await mustReadBack(repository, one);
  const others = manifests.filter(({ id }) => !told.committed.some((one) => one.id === id));
  expect(others.length).toBeLessThanOrEqual(told.uncertain.length);
  for (const { id } of others) {
    const reads = await Promise.allSettled(
      told.uncertain.map((one) => mustReadBack(repository, { ...one, id })),
    );
    expect(reads.map(({ status }) => status)).toContain('fulfilled');
  }
}

describe.each(PLANS)('an answer of the storage that is lost ($mode, and $outage calls after it)', (plan) => {
  let made: { inner: MemoryBackend; vm: ModelVm; told: Told };
  beforeAll(async () => {
    made = { inner: new MemoryBackend(), vm: new ModelVm(), told: { committed: [], uncertain: [] } };
    const repository = await Repository.init(made.inner);
    const chain = await repository.openChainWriter('web1', IDENTITY);
    for (let n = 0; n < 2; n++) await take(chain, made.vm, made.told);
    await chain.close();
  });

  /** A copy of a repository with two checkpoints. */
  async function prepare(): Promise<typeof made> {
    const inner = new MemoryBackend();
    for (const { key } of await made.inner.list('')) await inner.save(key, await made.inner.load(key));
    const vm = new ModelVm();
    vm.memory = made.vm.memory.slice();
    vm.committed = made.vm.committed.slice();
    return { inner, vm, told: { committed: [...made.told.committed], uncertain: [] } };
  }

  /** What fails is told, and changes nothing of what the next checkpoint goes on from. */
  async function take(chain: ChainWriter, vm: ModelVm, told: Told): Promise<void> {
    vm.scribble(20);
    const state = { memory: vm.memory.slice(), deviceState: vm.deviceState.slice(), layout: vm.layout };
    try {
      const { id } = await vm.checkpoint(chain, { packTargetBytes: 3000 });
      told.committed.push({ ...state, id });
    } catch (error) {
      if (isCheckpointError(error, 'CHECKPOINT_UNCERTAIN')) told.uncertain.push(state);
    }
  }

  /** Two checkpoints, and one more when all calls work again, by the same writer. */
  async function work(faulty: FaultyBackend, vm: ModelVm, told: Told): Promise<void> {
    const chain = await (await Repository.open(faulty)).openChainWriter('web1', IDENTITY);
    try {
      await take(chain, vm, told);
      await take(chain, vm, told);
      faulty.mend();
      const before = told.committed.length;
      await take(chain, vm, told);
      expect(told.committed).toHaveLength(before + 1);
    } finally {
      await chain.close();
    }
  }

  it('at any call of checkpoints leaves nobody with a false belief, and the chain goes on', async () => {
    const { inner, vm, told } = await prepare();
    const counting = new FaultyBackend(inner, { ...plan, atCall: 0 });
    await work(counting, vm, told);
    expect(counting.calls).toBeGreaterThan(20);
    let uncertain = 0;
    for (let atCall = 1; atCall <= counting.calls; atCall++) {
      const one = await prepare();
      const faulty = new FaultyBackend(one.inner, { ...plan, atCall });
      await work(faulty, one.vm, one.told).catch((error: unknown) => {
        if (!isCheckpointError(error)) throw error;
      });
      const repository = await Repository.open(one.inner);
      await mustAgree(repository, one.told);
      uncertain += one.told.uncertain.length;
      await repository.unlock('web1', { force: true });
      // Whoever comes next goes on from what is there.
      const chain = await repository.openChainWriter('web1', IDENTITY);
      one.vm.committed = (await readBack(repository, chain.latest!)).memory;
      await take(chain, one.vm, one.told);
      await chain.close();
      await mustReadBack(repository, one.told.committed.at(-1)!);
    }
    // Uncertain is only what cannot be looked at.
    expect(uncertain > 0).toBe((plan.outage ?? 0) > 0);
  }, 240_000);

  it('at any call of a policy takes nothing of what stays, and a second run finishes', async () => {
    const forget = async (faulty: FaultyBackend, vm: ModelVm): Promise<void> => {
      const chain = await (await Repository.open(faulty)).openChainWriter('web1', IDENTITY);
      try {
        await chain.forget({ last: 1 }, new Calendar('UTC'), { thinAbove: 0 }).catch(() => undefined);
        faulty.mend();
        vm.scribble(5);
        await vm.checkpoint(chain);
      } finally {
        await chain.close();
      }
    };
    const { inner, vm } = await prepare();
    const counting = new FaultyBackend(inner, { ...plan, atCall: 0 });
    await forget(counting, vm);
    for (let atCall = 1; atCall <= counting.calls; atCall++) {
      const one = await prepare();
      await forget(new FaultyBackend(one.inner, { ...plan, atCall }), one.vm).catch(() => undefined);
      const repository = await Repository.open(one.inner);
      expect(await verify(repository)).toMatchObject({ problems: [] });
      await mustReadBack(repository, one.told.committed.at(-1)!);
      await repository.unlock('web1', { force: true });
      const chain = await repository.openChainWriter('web1', IDENTITY);
      await chain.forget({ last: 1 }, new Calendar('UTC'), { thinAbove: 0 });
      await chain.close();
      expect(await verify(repository)).toMatchObject({ problems: [], checkpoints: 1 });
    }
  }, 240_000);

  it('at any call of init leaves a repository, or none and a second try makes one', async () => {
    for (let atCall = 1; atCall <= 3; atCall++) {
      const inner = new MemoryBackend();
      const made = await Repository.init(new FaultyBackend(inner, { ...plan, atCall })).catch(
        () => undefined,
      );
      const found = await Repository.open(inner).catch(() => undefined);
      if (made !== undefined) expect(found?.id).toBe(made.id);
      if (found === undefined) await Repository.init(inner);
      else await expect(Repository.init(inner)).rejects.toMatchObject({ code: 'REPO_EXISTS' });
      await Repository.open(inner);
    }
  });
});

describe('a session whose storage loses an answer', () => {
  const DISK: VmDisk = {
    id: 'disk0',
    path: '/srv/disk0.qcow2',
    format: 'qcow2',
    writable: true,
    virtualSizeBytes: 1 << 30,
    snapshotModes: ['internal'],
  };
  let runtimeDir = '';
  let guest: FakeGuest;
  let session: CheckpointSession | undefined;
  let written = 0;

  beforeEach(() => {
    runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-lost-'));
    guest = new FakeGuest({ disks: [DISK] });
  });
  afterEach(async () => {
    await session?.close();
    session = undefined;
    guest.dispose();
    rmSync(runtimeDir, { recursive: true });
  });

  async function open(repository: Repository): Promise<CheckpointSession> {
    session = await openSession(
      new HypervisorRegistry([new FakeHypervisor([guest])]),
      `fake:${guest.identity.name}`,
      { repository, runtimeDir, workers: 1, tracker: FAKE_TRACKER },
    );
    return session;
  }

  /** @returns what was told of it: its id, or a code */
  async function take(): Promise<string> {
    guest.write(written++ % 900, Uint8Array.of(written & 255, 1), 30);
    try {
      return (await session!.checkpoint()).checkpointId;
    } catch (error) {
      return isCheckpointError(error) ? error.code : 'UNEXPECTED';
    }
  }

  async function newestMustBeMemory(repository: Repository): Promise<void> {
    const { memory } = await readBack(repository, await repository.find('latest'));
    const now = guest.snapshot();
    expect(Buffer.compare(memory.subarray(0, now.length), now.subarray(0, memory.length))).toBe(0);
    expect(now.length % PAGE_SIZE_BYTES).toBe(0);
  }

  /** Storage works when the session is opened, and fails at the n-th call of its second checkpoint. */
  async function run(plan: Omit<FaultPlan, 'atCall'>, nth: number): Promise<readonly string[]> {
    const inner = new MemoryBackend();
    await Repository.init(inner);
    let faulty = new FaultyBackend(inner, { ...plan, atCall: 0 });
    const lateBound = new Proxy(inner, {
      get: (_, name) => {
        const value: unknown = Reflect.get(faulty, name, faulty);
        return typeof value === 'function' ? (value.bind(faulty) as unknown) : value;
      },
    });
    await open(await Repository.open(lateBound));
    const told = [await take()];
    faulty = new FaultyBackend(inner, { ...plan, atCall: nth });
    const names = faulty.names;
    told.push(await take());
    const ofCheckpoint = names.slice();
    faulty.mend();
    const repository = await Repository.open(inner);
    const agree = async (): Promise<void> => {
      const ids = (await repository.checkpoints()).manifests.map(({ id }) => id);
      const certain = ids.filter((id) => told.includes(id));
      expect(certain).toEqual(told.filter((what) => /^[0-9a-f]{16}$/.test(what)));
      const open = told.filter((what) => what === 'CHECKPOINT_UNCERTAIN').length;
      expect(ids.length - certain.length).toBeLessThanOrEqual(open);
      expect((await verify(repository)).problems).toEqual([]);
      // The disks of every checkpoint that is there are there.
      for (const id of ids) expect([...guest.snapshots].join()).toContain(id);
    };
    await agree();
    told.push(await take());
    expect(told.at(-1)).toMatch(/^[0-9a-f]{16}$/);
    await newestMustBeMemory(repository);
    await session!.close();
    await open(repository);
    told.push(await take());
    expect(told.at(-1)).toMatch(/^[0-9a-f]{16}$/);
    await newestMustBeMemory(repository);
    await agree();
    await session!.close();
    session = undefined;
    return ofCheckpoint;
  }

  it.each(PLANS)(
    'goes on with the right belief ($mode, and $outage calls after it)',
    async (plan) => {
      const names = await run(plan, 0);
      // Calls that only look were shown above.
      const changing = names.flatMap((name, i) => (/^(save|remove|confirm)/.test(name) ? [i + 1] : []));
      expect(changing.length).toBeGreaterThan(2);
      for (const nth of changing) await run(plan, nth);
    },
    240_000,
  );
});
