/** Random chains with deltas, patches, bases in between and several packs a checkpoint; random checkpoints of them are forgotten. */

import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';

import { MAX_DELTA_DEPTH } from '../../src/format/record-ref.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { forgetIds, mustBeWhole, storedBytes, strays } from '../support/forget-model.js';
import { IDENTITY, ModelVm, type Expected } from '../unit/repository-model.js';

const RUNS = 15;

const step = fc.record({
  checkpoints: fc.integer({ min: 1, max: 14 }),
  pages: fc.integer({ min: 1, max: 25 }),
  startsWithBase: fc.boolean(),
  hasSources: fc.boolean(),
  /** Of the checkpoints that are there then, in turn: whether it is forgotten. */
  forgets: fc.array(fc.boolean(), { minLength: 1, maxLength: 7 }),
  thinAbove: fc.constantFrom(0, 0.05, 0.2, 1),
});

async function takeCheckpoints(
  repository: Repository,
  vm: ModelVm,
  { checkpoints, pages, startsWithBase }: { checkpoints: number; pages: number; startsWithBase: boolean },
): Promise<Expected[]> {
  const chain = await repository.openChainWriter('web1', IDENTITY);
  const taken: Expected[] = [];
  for (let n = 0; n < checkpoints; n++) {
    vm.scribble(pages);
    // One page changes a little each time, so that its deltas come to the greatest depth.
    vm.page(3)[n] = (vm.page(3)[n]! + 1) & 255;
    const asBase = n === 0 && startsWithBase;
    if (asBase) vm.committed = new Uint8Array(vm.memory.length);
    const manifest = await vm.checkpoint(chain, {
      ...(asBase ? { parent: null } : {}),
      packTargetBytes: n % 3 === 0 ? 2000 : 2 ** 30,
    });
    taken.push(vm.snapshot(manifest));
  }
  await chain.close();
  return taken;
}

describe('forgetting checkpoints', () => {
  it('changes no page of those that stay, leaves nothing that they do not need, and the chain goes on', async () => {
    let deepest = 0;
    const done = { removedObjects: 0, thinnedPacks: 0 };
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 3 }), fc.nat(), async (steps, seed) => {
        const backend = new MemoryBackend();
        const repository = await Repository.init(backend);
        const vm = new ModelVm(undefined, seed);
        vm.scribble(150);
        let expected: Expected[] = [];
        for (const one of steps) {
          vm.hasSources = one.hasSources;
          // What the next checkpoint is held against is the newest one that is left.
          vm.committed = expected.at(-1)?.memory.slice() ?? new Uint8Array(vm.memory.length);
          expected.push(...(await takeCheckpoints(repository, vm, one)));
          const { manifests } = await repository.checkpoints();
          deepest = Math.max(deepest, ...manifests.map(({ maxDepth }) => maxDepth));
          const isForgotten = (_: Expected, i: number): boolean => one.forgets[i % one.forgets.length]!;
          const leaving = expected.filter(isForgotten);
          expected = expected.filter((each, i) => !isForgotten(each, i));
          const before = await storedBytes(backend);
          const { thinAbove } = one;
          const result = await forgetIds(
            repository,
            leaving.map(({ id }) => id),
            { thinAbove },
          );
          expect(result.problems).toEqual([]);
          done.removedObjects += result.removedObjects;
          done.thinnedPacks += result.thinnedPacks;
          expect(result.removed).toHaveLength(leaving.length);
          const marks = (await verify(repository)).orphans.length;
          const freed = before - (await storedBytes(backend));
          expect(result.freedBytes - freed).toBeLessThanOrEqual(marks * 256);
          expect(result.freedBytes).toBeGreaterThanOrEqual(freed);
          await mustBeWhole(backend, expected);
          expect(await strays(repository)).toEqual([]);
        }
        // Nothing is left to be done, whatever was not worth it before.
        const again = await forgetIds(repository, [], { thinAbove: 1 });
        expect(again).toMatchObject({ removed: [], removedObjects: 0, thinnedPacks: 0, freedBytes: 0 });
      }),
      { numRuns: RUNS },
    );
    // Unless deltas were at their greatest depth, and there was something to do, the above says little.
    expect(deepest).toBe(MAX_DELTA_DEPTH);
    expect(done.removedObjects).toBeGreaterThan(RUNS);
    expect(done.thinnedPacks).toBeGreaterThan(RUNS);
  });
});
