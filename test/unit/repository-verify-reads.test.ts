import { describe, expect, it } from '@jest/globals';

import { layOut } from '../../src/hypervisor/memory-layout.js';
import { sharedKernels } from '../../src/kernels/shared-kernels.js';
import { ChainReader } from '../../src/repository/read/chain-reader.js';
import type { RecordTable } from '../../src/repository/verify/record-table.js';
import { Repository } from '../../src/repository/repository.js';
import { verifyPack } from '../../src/repository/verify/verify-pack.js';
import { verifyPages } from '../../src/repository/verify/verify-pages.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { IDENTITY, ModelVm, seeded } from './repository-model.js';

/** Some pages in each of many places far apart, so that the order in which they are visited matters. */
const PLACES = 16;
const PAGES_APART = 2048;
const PAGES_IN_A_PLACE = 40;
const DELTAS = 8;
const SCATTERED_PAGES = 200;

describe('verifying a long chain', () => {
  it('reads a frame a few times at most, however scattered the deltas are that build on it', async () => {
    const vm = new ModelVm(layOut([{ id: 'pc.ram', sizeBytes: PLACES * PAGES_APART * PAGE_SIZE_BYTES }]));
    const random = seeded(7);
    const anyPage = (): Uint8Array => vm.page(random(PLACES) * PAGES_APART + random(PAGES_IN_A_PLACE));
    for (let place = 0; place < PLACES; place++) {
      for (let i = 0; i < PAGES_IN_A_PLACE; i++) {
        vm.page(place * PAGES_APART + i).forEach((_, at, page) => (page[at] = random(256)));
      }
    }
    const backend = new MemoryBackend();
    const repository = await Repository.init(backend);
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const packs = [...(await vm.checkpoint(chain)).packs];
    for (let delta = 0; delta < DELTAS; delta++) {
      for (let i = 0; i < SCATTERED_PAGES; i++) anyPage()[random(PAGE_SIZE_BYTES)]!++;
      packs.push(...(await vm.checkpoint(chain)).packs);
    }
    await chain.close();

    // Of the base, 2.5 MiB, a tenth is kept.
    const reader = new ChainReader(backend, repository.id, 'web1', {
      cacheBytes: 1 << 18,
      sourceBytes: 1 << 18,
    });
    const tables = new Map<number, RecordTable>();
    const onProblem = (_key: string, error: unknown): void => {
      throw error;
    };
    const onBasePack = (): Promise<void> => Promise.resolve();
    for (const { seq } of packs) {
      const check = { packs: reader.packs, tables, onProblem, onBytes: () => undefined, onBasePack };
      await verifyPack(await reader.packs.open(seq), check, {});
    }
    const storedBytes = packs.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    let readBytes = 0;
    const load = backend.load.bind(backend);
    backend.load = async (...args) => {
      const bytes = await load(...args);
      readBytes += bytes.length;
      return bytes;
    };
    let records = 0;
    const onRecords = (count: number): void => void (records += count);
    const isWorse = await verifyPages({ reader, kernels: sharedKernels(), tables, onProblem, onRecords }, {});
    expect(isWorse).toBe(false);
    expect(records).toBeGreaterThan(PLACES * PAGES_IN_A_PLACE + (DELTAS * SCATTERED_PAGES) / 2);
    expect(readBytes).toBeLessThan(3 * storedBytes);
  });
});
