/** Storage fails at each call of a `forget` in turn. What was to stay must be there, whole, at any moment; a second run does the rest. */

import { describe, expect, it } from '@jest/globals';

import { forget, type ForgetResult } from '../../src/repository/forget/forget.js';
import { Calendar } from '../../src/repository/forget/calendar.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import { FaultyBackend, type FaultMode } from '../support/faulty-backend.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { forgetIds, mustBeWhole, sourceOf, strays } from '../support/forget-model.js';
import { IDENTITY, ModelVm, mustReadBack, type Expected } from '../unit/repository-model.js';

const CHECKPOINTS = 6;
const KEPT = 2;
/** Always, so that there is much to go wrong. */
const thinAbove = 0;

interface Prepared {
  readonly inner: MemoryBackend;
  readonly vm: ModelVm;
  readonly all: readonly Expected[];
}

async function prepare(): Promise<Prepared> {
  const inner = new MemoryBackend();
  const repository = await Repository.init(inner);
  const vm = new ModelVm();
  vm.scribble(60);
  const chain = await repository.openChainWriter('web1', IDENTITY);
  const all: Expected[] = [];
  for (let n = 0; n < CHECKPOINTS; n++) {
    vm.scribble(12);
    all.push(vm.snapshot(await vm.checkpoint(chain)));
  }
  await chain.close();
  return { inner, vm, all };
}

async function copyOf(backend: MemoryBackend): Promise<MemoryBackend> {
  const copy = new MemoryBackend();
  for (const { key } of await backend.list('')) await copy.save(key, await backend.load(key));
  return copy;
}

async function forgetMost(backend: FaultyBackend | MemoryBackend): Promise<ForgetResult> {
  const repository = await Repository.open(backend);
  const choice = { policy: { last: KEPT }, calendar: new Calendar('UTC') };
  return forget(sourceOf(repository), choice, { thinAbove });
}

describe('storage that fails while checkpoints are forgotten', () => {
  it.each<FaultMode>(['fail', 'lost-reply', 'crash', 'crash-after'])(
    '(%s) at any call leaves all that stay whole, and a second run finishes',
    async (mode) => {
      const { inner, all } = await prepare();
      const counting = new FaultyBackend(await copyOf(inner), { mode: 'fail', atCall: 0 });
      expect((await forgetMost(counting)).removed).toHaveLength(CHECKPOINTS - KEPT);
      const changes = new Set<string>();
      for (let atCall = 1; atCall <= counting.calls; atCall++) {
        const backend = await copyOf(inner);
        const faulty = new FaultyBackend(backend, { mode, atCall });
        await forgetMost(faulty).catch(() => undefined);
        changes.add(faulty.faultyCall.split(' ')[0]!);
        const repository = await Repository.open(backend);
        await repository.unlock('web1', { force: true });
        const { manifests, damaged } = await repository.checkpoints();
        expect(damaged).toEqual([]);
        // In the order of the chain: the oldest are gone, and what is there is whole.
        const left = all.slice(all.length - manifests.length);
        expect(manifests.map(({ id }) => id)).toEqual(left.map(({ id }) => id));
        expect(left.length).toBeGreaterThanOrEqual(KEPT);
        for (const one of left) await mustReadBack(repository, one);
        expect((await verify(repository)).problems).toEqual([]);
        await forgetMost(backend);
        for (const one of all.slice(-KEPT)) await mustReadBack(repository, one);
        expect(await verify(repository)).toMatchObject({ problems: [], checkpoints: KEPT });
        expect(await strays(repository)).toEqual([]);
      }
      // Unless packs were written anew and removed, nothing was shown.
      for (const call of ['replace', 'remove', 'load', 'list']) expect(changes).toContain(call);
    },
    120_000,
  );

  it('at any call leaves numbers that are not used again', async () => {
    const { inner, vm, all } = await prepare();
    const forgetNewest = async (backend: FaultyBackend | MemoryBackend): Promise<unknown> =>
      forgetIds(
        await Repository.open(backend),
        all.slice(3).map(({ id }) => id),
        { thinAbove },
      );
    const numbers = async (backend: MemoryBackend): Promise<{ pack: number; segment: number }> => {
      const { manifests } = await (await Repository.open(backend)).checkpoints();
      return {
        pack: Math.max(...manifests.flatMap(({ packs }) => packs.map(({ seq }) => seq))),
        segment: Math.max(...manifests.flatMap(({ segments }) => segments.map(({ seq }) => seq))),
      };
    };
    const used = await numbers(inner);
    const counting = new FaultyBackend(await copyOf(inner), { mode: 'fail', atCall: 0 });
    await forgetNewest(counting);
    for (let atCall = 1; atCall <= counting.calls + 1; atCall++) {
      const backend = await copyOf(inner);
      await forgetNewest(new FaultyBackend(backend, { mode: 'crash', atCall })).catch(() => undefined);
      const repository = await Repository.open(backend);
      await repository.unlock('web1', { force: true });
      await forgetNewest(backend);
      // Once more, so that a mark is the highest of all when it begins.
      await forgetIds(repository, [all[2]!.id]);
      const chain = await repository.openChainWriter('web1', IDENTITY);
      vm.committed = all[1]!.memory.slice();
      vm.scribble(5);
      const next = vm.snapshot(await vm.checkpoint(chain));
      await chain.close();
      const now = await numbers(backend);
      expect(now.pack).toBeGreaterThan(used.pack);
      expect(now.segment).toBeGreaterThan(used.segment);
      await mustBeWhole(backend, [...all.slice(0, 2), next]);
    }
  }, 120_000);
});
