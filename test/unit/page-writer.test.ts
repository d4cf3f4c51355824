import { describe, expect, it } from '@jest/globals';

import { holdPages } from '../../bench/trace/replay-reader.js';
import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { PageWriter } from '../../src/checkpoint/pages/page-writer.js';
import { PageShare } from '../../src/pool/page-share.js';
import type { SharePool } from '../../src/pool/share-pool.js';
import { Scratch } from '../../src/host/scratch.js';
import { ChainReader } from '../../src/repository/read/chain-reader.js';
import type { Manifest } from '../../src/format/manifest.js';
import { MAX_DELTA_DEPTH } from '../../src/format/record-ref.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { PAGE_SIZE_BYTES, type PageRuns } from '../../src/types.js';
import { commitFields, IDENTITY, ModelVm, mustReadBack } from './repository-model.js';

/** A model VM whose changed pages go through a share and the page writer, as in a checkpoint, in this thread. */
async function start(cacheBytes = 1 << 24) {
  const backend = new MemoryBackend();
  const repository = await Repository.init(backend);
  const chain = await repository.openChainWriter('web1', IDENTITY);
  const vm = new ModelVm();
  const moduleUrl = new URL('../../bench/trace/replay-reader.js', import.meta.url).href;
  const share = await PageShare.open({ moduleUrl, options: null }, { cacheBytes, level: 3 });
  const pool = {
    shares: [share],
    scratch: new Scratch(),
    split: (runs: PageRuns) => [runs],
    widen: () => Promise.resolve(),
  } as unknown as SharePool;
  const checkpoint = async (): Promise<Manifest> => {
    const pages = vm.dirtyPages();
    const parent = chain.latest;
    const map = await vm.mapOf(chain, parent);
    const kind = parent === null ? 'base' : 'incremental';
    const writer = await chain.begin({ kind, parent, layout: vm.layout, map });
    const reader = new ChainReader(backend, repository.id, 'web1');
    const bitmap = new DirtyBitmap(vm.layout.pageSpan);
    for (const page of pages) bitmap.set(page);
    holdPages(pages, Buffer.concat([...pages].map((page) => vm.page(page))));
    share.capture(bitmap.toRuns());
    await new PageWriter({ pool, writer, map, reader, signal: undefined }).writeCaptured(
      true,
      () => undefined,
    );
    const manifest = await writer.commit(commitFields());
    vm.committed = vm.memory.slice();
    vm.deviceState = new Uint8Array(0);
    await mustReadBack(repository, vm.snapshot(manifest));
    return manifest;
  };
  return { repository, vm, checkpoint };
}

describe('the page writer', () => {
  it('reaches the greatest depth and goes on from the bottom, in few bytes', async () => {
    const { vm, checkpoint, repository } = await start();
    const depths: number[] = [];
    const sizes: number[] = [];
    for (let n = 0; n < MAX_DELTA_DEPTH + 4; n++) {
      if (n === 0) for (let at = 0; at < PAGE_SIZE_BYTES; at++) vm.page(5)[at] = (at * at * 31) >>> 5;
      vm.page(5)[n * 9]! ^= 1;
      const manifest = await checkpoint();
      depths.push(manifest.maxDepth);
      sizes.push(manifest.storedBytes);
    }
    expect(depths).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]);
    expect(Math.max(...sizes.slice(1))).toBeLessThan(sizes[0]! / 2);
    expect((await verify(repository)).problems).toEqual([]);
  });

  it('notices a page that came back to what it was at the bottom', async () => {
    const { vm, checkpoint, repository } = await start();
    vm.page(5).fill(7);
    vm.page(6).fill(9);
    await checkpoint();
    for (let n = 1; n <= MAX_DELTA_DEPTH; n++) {
      vm.page(5)[n] = 200;
      vm.page(6)[n] = 200;
      await checkpoint();
    }
    vm.page(5).fill(7);
    vm.page(6)[0] = 1;
    expect((await checkpoint()).maxDepth).toBe(1);
    vm.page(5)[3] = 1;
    expect((await checkpoint()).maxDepth).toBe(1);
    expect((await verify(repository)).problems).toEqual([]);
  });

  it.each([0, 1 << 24])(
    'brings moved and changed pages back, with a cache of %i bytes',
    async (cacheBytes) => {
      const { vm, checkpoint, repository } = await start(cacheBytes);
      vm.scribble(120);
      await checkpoint();
      for (let n = 0; n < 14; n++) {
        vm.scribble(40);
        // Content on the move, all through memory.
        for (let page = 40; page < 60; page++)
          vm.page(page).set(vm.page(page + 1, vm.committed).subarray(n * 16), 0);
        await checkpoint();
      }
      expect((await verify(repository)).problems).toEqual([]);
    },
  );
});
