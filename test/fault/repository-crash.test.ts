/** Storage fails at each call in turn. Whatever was committed before must be there afterwards, whole, and work must go on. */

import { describe, expect, it } from '@jest/globals';

import { Repository } from '../../src/repository/repository.js';
import { forget } from '../../src/repository/forget/forget.js';
import { verify } from '../../src/repository/verify/verify.js';
import type { WritePoint } from '../../src/repository/write/checkpoint-writer.js';
import { FaultyBackend, type FaultMode } from '../support/faulty-backend.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { IDENTITY, ModelVm, mustReadBack, type Expected } from '../unit/repository-model.js';
import { columnsOf } from '../support/map-columns.js';

const CHECKPOINTS = 2;

interface Run {
  readonly repository: Repository;
  readonly vm: ModelVm;
  /** Checkpoints whose commit returned. */
  readonly expected: Expected[];
  /** State at a commit that failed: it may be there, it may not. */
  readonly attempted: Expected[];
}

/** Two checkpoints in good order, so that the faults meet a chain with a history. */
async function prepare(): Promise<{ inner: MemoryBackend; run: Run }> {
  const inner = new MemoryBackend();
  const repository = await Repository.init(inner);
  const run: Run = { repository, vm: new ModelVm(), expected: [], attempted: [] };
  run.vm.scribble(150);
  await work(run, repository, 2);
  return { inner, run };
}

/** Opens the chain and takes checkpoints; several packs each, one watcher-like map kept over all of them. */
async function work(run: Run, repository: Repository, count: number): Promise<void> {
  const { vm } = run;
  const chain = await repository.openChainWriter('web1', IDENTITY);
  try {
    const map = await vm.mapOf(chain, chain.latest);
    for (let n = 0; n < count; n++) {
      vm.scribble(20);
      const state = { memory: vm.memory.slice(), deviceState: vm.deviceState.slice(), layout: vm.layout };
      try {
        const { id } = await vm.checkpoint(chain, { map, packTargetBytes: 3000 });
        run.expected.push({ ...state, id });
      } catch (error) {
        run.attempted.push({ ...state, id: '' });
        throw error;
      }
    }
  } finally {
    await chain.close().catch(() => undefined);
  }
}

/** After the fault: everything committed is whole, nothing is damaged, and the chain can be continued. */
async function mustBeWhole(inner: MemoryBackend, run: Run): Promise<void> {
  const repository = await Repository.open(inner);
  await repository.unlock('web1', { force: true });
  for (const one of run.expected) await mustReadBack(repository, one);
  const { problems } = await verify(repository);
  expect(problems).toEqual([]);
  const { manifests } = await repository.checkpoints();
  const unexpected = manifests.filter(({ id }) => !run.expected.some((one) => one.id === id));
  // At most the one whose success could not be told, and then it is whole as well.
  expect(unexpected.length).toBeLessThanOrEqual(run.attempted.length);
  for (const [i, { id }] of unexpected.entries())
    await mustReadBack(repository, { ...run.attempted[i]!, id });
  const { vm } = run;
  const latest = manifests.at(-1);
  const known = [...run.expected, ...run.attempted.map((one) => ({ ...one, id: unexpected[0]?.id ?? '' }))];
  vm.committed = known.find(({ id }) => id === latest?.id)!.memory.slice();
  await work(run, repository, 2);
  for (const one of run.expected) await mustReadBack(repository, one);
  expect((await verify(repository)).problems).toEqual([]);
}

async function countCalls(): Promise<number> {
  const { inner, run } = await prepare();
  const counting = new FaultyBackend(inner, { mode: 'fail', atCall: 0 });
  await work(run, await Repository.open(counting), CHECKPOINTS);
  return counting.calls;
}

describe('storage that fails', () => {
  it.each<FaultMode>(['fail', 'lost-reply', 'crash', 'crash-after'])(
    '(%s) at any call leaves all committed checkpoints whole, and the chain goes on',
    async (mode) => {
      const calls = await countCalls();
      expect(calls).toBeGreaterThan(15);
      for (let atCall = 1; atCall <= calls; atCall++) {
        const { inner, run } = await prepare();
        const faulty = new FaultyBackend(inner, { mode, atCall });
        const before = run.expected.length;
        const outcome = await Repository.open(faulty)
          .then((repository) => work(run, repository, CHECKPOINTS))
          .then(
            () => 'done',
            () => 'failed',
          );
        if (outcome === 'done') expect(run.expected.length).toBe(before + CHECKPOINTS);
        await mustBeWhole(inner, run);
      }
    },
  );

  it('without room says so, and leaves nothing behind', async () => {
    const calls = await countCalls();
    for (let atCall = 1; atCall <= calls; atCall++) {
      const { inner, run } = await prepare();
      const faulty = new FaultyBackend(inner, { mode: 'fail', atCall, code: 'STORAGE_FULL' });
      const repository = await Repository.open(faulty).catch(() => undefined);
      if (repository === undefined) continue;
      await work(run, repository, CHECKPOINTS).catch((error: unknown) => {
        expect(error).toMatchObject({ code: 'STORAGE_FULL' });
      });
      const result = await verify(await Repository.open(inner));
      expect(result.problems).toEqual([]);
      expect(result.orphans).toEqual([]);
    }
  });
});

describe('a failure between the steps of a commit', () => {
  const points: readonly WritePoint[] = ['before-pack', 'pack-durable', 'index-durable', 'before-manifest'];

  it.each(points)('(%s) takes everything back', async (point) => {
    const { inner, run } = await prepare();
    const objects = await inner.list('');
    const chain = await run.repository.openChainWriter('web1', IDENTITY);
    const map = await run.vm.mapOf(chain, chain.latest);
    const { refs } = columnsOf(map);
    run.vm.scribble(20);
    const onPoint = (reached: WritePoint): void => {
      if (reached === point) throw new Error('stop here');
    };
    await expect(run.vm.checkpoint(chain, { map, onPoint })).rejects.toThrow('stop here');
    expect(columnsOf(map).refs).toEqual(refs);
    await chain.close();
    expect(await inner.list('')).toEqual(objects);
  });

  it('(after-manifest) changes nothing any more', async () => {
    const { inner, run } = await prepare();
    const chain = await run.repository.openChainWriter('web1', IDENTITY);
    const map = await run.vm.mapOf(chain, chain.latest);
    run.vm.scribble(20);
    const reached: WritePoint[] = [];
    const onPoint = (point: WritePoint): void => {
      reached.push(point);
      if (point === 'after-manifest') throw new Error('too late');
    };
    await expect(run.vm.checkpoint(chain, { map, onPoint })).rejects.toThrow('too late');
    expect(reached).toEqual([...points, 'after-manifest']);
    expect(chain.latest?.seq).toBe(3);
    await mustReadBack(run.repository, run.vm.snapshot(chain.latest!));
    await chain.close();
    expect((await verify(await Repository.open(inner))).checkpoints).toBe(3);
  });
});

describe('a save that was torn', () => {
  it('is found wherever it happens: verify names the object, and what came before is whole', async () => {
    const calls = await countCalls();
    let torn = 0;
    for (let atCall = 1; atCall <= calls; atCall++) {
      const { inner, run } = await prepare();
      const faulty = new FaultyBackend(inner, { mode: 'torn', atCall });
      await Repository.open(faulty)
        .then((repository) => work(run, repository, 1))
        .catch(() => undefined);
      const repository = await Repository.open(inner);
      for (const one of run.expected) await mustReadBack(repository, one);
      const [call, key] = faulty.faultyCall.split(' ');
      if (call !== 'save') continue;
      torn++;
      // A pack or index segment that nothing refers to yet is an orphan, anything else a problem.
      const { problems, orphans } = await verify(repository);
      expect([...problems.map((problem) => problem.key), ...orphans]).toContain(key);
    }
    expect(torn).toBeGreaterThan(3);
  });
});

describe('the first writer of a chain', () => {
  it.each(['crash', 'crash-after'] as const)('leaves nothing that is called damage (%s)', async (mode) => {
    const begin = async (atCall: number): Promise<{ calls: number; inner: MemoryBackend }> => {
      const inner = new MemoryBackend();
      await Repository.init(inner);
      const faulty = new FaultyBackend(inner, { mode, atCall });
      const begun = Repository.open(faulty).then((one) => one.openChainWriter('web1', IDENTITY));
      await begun.then((chain) => chain.close()).catch(() => undefined);
      return { calls: faulty.calls, inner };
    };
    const { calls } = await begin(0);
    expect(calls).toBeGreaterThan(5);
    for (let atCall = 1; atCall <= calls; atCall++) {
      const { inner } = await begin(atCall);
      const repository = await Repository.open(inner);
      expect(await verify(repository)).toMatchObject({ problems: [], checkpoints: 0 });
      await repository.unlock('web1', { force: true });
      for (const source of await repository.sweepSources('web1'))
        await forget(source, { manifestKeys: new Set() });
      expect(await verify(repository)).toMatchObject({ problems: [], checkpoints: 0 });
      await (await repository.openChainWriter('web1', IDENTITY)).close();
    }
  });
});
