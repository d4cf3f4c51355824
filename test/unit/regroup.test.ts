import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from '@jest/globals';

import { openRepositorySubject } from '../../src/study/repository-subject.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import type { ChainWriter } from '../../src/repository/chain-writer.js';
import { BOTTOM_LEVEL, type Manifest } from '../../src/format/manifest.js';
import { PageMap } from '../../src/repository/read/page-map.js';
import { makeRef, packOfRef, ZERO_REF } from '../../src/format/record-ref.js';
import { budgetOf, pagesToRegroup } from '../../src/repository/write/regroup-policy.js';
import { Repository } from '../../src/repository/repository.js';
import type { SegmentPlan } from '../../src/repository/write/segment-plan.js';
import { verify } from '../../src/repository/verify/verify.js';
import type { StorageBackend } from '../../src/storage/backend.js';
import { FileBackend } from '../../src/storage/file.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { verifyRepository } from '../golden/verifier.js';
import { IDENTITY, ModelVm, readBack } from './repository-model.js';
import { columnsOf } from '../support/map-columns.js';

const top = mkdtempSync(join(tmpdir(), 'cairn-regroup-'));
afterAll(() => rmSync(top, { recursive: true }));

const WIDE = layOut([{ id: 'pc.ram', sizeBytes: 700 * PAGE_SIZE_BYTES }]);

/** Checkpoints of a VM that writes to `pages` random pages between them, the same for the same seed. */
async function take(
  chain: ChainWriter,
  vm: ModelVm,
  count: number,
  pages: number,
  isRegrouping: boolean,
  onCheckpoint: (manifest: Manifest, n: number) => void = () => undefined,
): Promise<readonly Manifest[]> {
  const map = await vm.mapOf(chain, chain.latest);
  const reader = chain.reader();
  const manifests: Manifest[] = [];
  for (let n = 0; n < count; n++) {
    const manifest = await vm.checkpoint(chain, {
      map,
      ...(isRegrouping ? { regroupFrom: reader } : {}),
    });
    manifests.push(manifest);
    onCheckpoint(manifest, n);
    vm.scribble(pages);
  }
  return manifests;
}

/** Packs in which the newest records of all pages lie. */
async function packsInUse(repository: Repository, manifest: Manifest): Promise<number> {
  const { refs } = columnsOf(await repository.loadMap(manifest));
  return new Set([...refs].filter((ref) => ref !== ZERO_REF).map(packOfRef)).size;
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

describe('a chain of 600 checkpoints', () => {
  async function make(isRegrouping: boolean) {
    const repository = await Repository.init(new MemoryBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm(WIDE);
    vm.scribble(1500);
    const contents = new Map<string, string>();
    const manifests = await take(chain, vm, 600, 3, isRegrouping, ({ id }, n) => {
      // Around every regrouping of all levels, and here and there.
      if (n % 64 < 2 || n % 64 === 63 || n % 37 === 0) contents.set(id, sha256(vm.memory));
    });
    await chain.close();
    return { repository, manifests, contents };
  }

  it('is regrouped on three levels, gives every page back, verifies, and is stored in bounded space', async () => {
    const { repository, manifests, contents } = await make(true);
    for (const [id, hash] of contents)
      expect(sha256((await readBack(repository, await repository.find(id))).memory)).toBe(hash);
    expect(contents.size).toBeGreaterThan(40);
    const result = await verify(repository);
    expect(result).toMatchObject({ problems: [], orphans: [], checkpoints: 600 });

    const regrouping = manifests.filter(({ regrouped }) => regrouped !== undefined);
    expect(regrouping.length).toBeGreaterThan(50);
    const levelOf = ({ segments }: Manifest): number => segments[0]!.level;
    expect(new Set(regrouping.map(levelOf))).toEqual(new Set([1, 2, BOTTOM_LEVEL]));
    for (const { regrouped, packs } of regrouping) {
      expect(packs.at(-1)!.seq).toBe(regrouped!.pack);
      expect(regrouped!.pageCount).toBeGreaterThan(0);
    }
    const last = manifests.at(-1)!;
    const plain = await make(false);
    expect(await packsInUse(repository, last)).toBeLessThan(110);
    expect(await packsInUse(plain.repository, plain.manifests.at(-1)!)).toBeGreaterThan(300);
    const increments = sum(plain.manifests.slice(1).map(({ storedBytes }) => storedBytes));
    const regrouped = sum(
      regrouping.map(
        ({ regrouped: entry, packs }) => packs.find(({ seq }) => seq === entry!.pack)!.sizeBytes,
      ),
    );
    // A quarter on each of three levels, each of what the level below stored.
    expect(regrouped).toBeLessThan(increments * (1.25 ** 3 - 1));
    expect(sum(manifests.slice(1).map(({ storedBytes }) => storedBytes))).toBeLessThan(
      increments * 1.25 ** 3,
    );
  });
});

describe('a regrouped chain', () => {
  it('is what the format says, to a reader that knows nothing of it', async () => {
    const folder = join(top, 'golden');
    const repository = await Repository.init(new FileBackend(folder));
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(250);
    const expected: string[] = [];
    const regions = vm.layout.regions;
    const manifests = await take(chain, vm, 70, 3, true, () => {
      const [{ firstPage, sizeBytes }] = [regions[0]!];
      const from = firstPage * PAGE_SIZE_BYTES;
      expected.push(sha256(vm.memory.subarray(from, from + sizeBytes)));
    });
    await chain.close();
    expect(manifests.filter(({ regrouped }) => regrouped !== undefined).length).toBeGreaterThan(6);
    expect(verifyRepository(folder).map((one) => one.regions[regions[0]!.id])).toEqual(expected);
  });

  it('reads pages that changed together from few records, however often they changed', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm(WIDE);
    for (let page = 0; page < 400; page++)
      vm.page(page).forEach((_, at, all) => (all[at] = (at * page) >>> 3));
    const map = await vm.mapOf(chain, null);
    const reader = chain.reader();
    for (let n = 0; n < 9; n++) {
      // A stretch that is quiet when the eighth increment regroups it, and a page that changes each time.
      for (let page = 20; page < 60 && n < 8; page++) vm.page(page)[100 + n] = 200;
      vm.page(300)[n] = 77;
      await vm.checkpoint(chain, { map, regroupFrom: reader });
    }
    const { regrouped } = chain.latest!;
    expect(regrouped?.pageCount).toBe(40);
    for (let page = 20; page < 60; page++) {
      expect(packOfRef(map.refOf(page))).toBe(regrouped!.pack);
      expect(map.depthOf(page)).toBe(1);
    }
    expect(map.depthOf(300)).toBe(8);
    expect(packOfRef(map.refOf(300))).not.toBe(regrouped!.pack);
    const { memory } = await readBack(repository, chain.latest!);
    expect(Buffer.compare(memory, vm.memory)).toBe(0);
  });

  it('is analyzed by what changed, not by what was moved', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm(WIDE);
    vm.scribble(2000);
    const dirty: number[] = [];
    const manifests = await take(chain, vm, 20, 20, true, () => undefined);
    expect(manifests.some(({ regrouped }) => regrouped !== undefined)).toBe(true);
    const maps = await Promise.all(
      manifests.map(async (manifest) => columnsOf(await repository.loadMap(manifest))),
    );
    for (let n = 1; n < manifests.length; n++) {
      const own = manifests[n]!.regrouped?.pack;
      dirty.push(
        [...maps[n]!.refs].filter((ref, page) => ref !== maps[n - 1]!.refs[page] && packOfRef(ref) !== own)
          .length,
      );
    }
    const subject = await openRepositorySubject(repository, 'web1', { epochs: 99, maxContentPages: 1000 });
    const observed: number[] = [];
    for await (const { pages } of subject.epochs()) observed.push(pages.length);
    expect(observed).toEqual(dirty);
    // Twenty writes do not change more pages than that.
    expect(Math.max(...observed)).toBeLessThanOrEqual(20);
  });
});

describe('what was regrouped ahead of a checkpoint', () => {
  /** Pages that changed in each of eight checkpoints, so that the next one takes over eight segments. */
  const BUSY = { from: 20, to: 60 };

  async function prepare(backend: StorageBackend = new MemoryBackend(), pageCount = 700, busy = BUSY) {
    const repository = await Repository.init(backend);
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm(layOut([{ id: 'pc.ram', sizeBytes: pageCount * PAGE_SIZE_BYTES }]));
    for (let page = 0; page < pageCount; page++)
      vm.page(page).forEach((_, at, all) => (all[at] = (at * (page + 1)) >>> 3));
    const map = await vm.mapOf(chain, null);
    const reader = chain.reader();
    for (let n = 0; n < 8; n++) {
      for (let page = busy.from; page < busy.to; page++) vm.page(page)[100 + n] = 200;
      await vm.checkpoint(chain, { map });
    }
    const ahead = (until: AbortSignal = new AbortController().signal): Promise<number> =>
      chain.regroupAhead({ map, layout: vm.layout, reader, level: 3, until });
    const mustBeWhole = async (): Promise<void> => {
      const { memory } = await readBack(repository, chain.latest!);
      expect(Buffer.compare(memory, vm.memory)).toBe(0);
      await chain.close();
      expect(await verify(repository)).toMatchObject({ problems: [], orphans: [] });
    };
    return { backend, repository, chain, vm, map, reader, ahead, mustBeWhole };
  }

  it('is taken over but for the pages that the checkpoint changed', async () => {
    const { chain, vm, map, ahead, mustBeWhole } = await prepare();
    expect(await ahead()).toBe(40);
    for (let page = 30; page < 40; page++) vm.page(page)[0] = 7;
    const { regrouped, packs } = await vm.checkpoint(chain, { map });
    expect(regrouped).toEqual({ pack: packs[0]!.seq, pageCount: 30 });
    expect(packs).toHaveLength(2);
    for (let page = BUSY.from; page < BUSY.to; page++) {
      const isChanged = page >= 30 && page < 40;
      expect(packOfRef(map.refOf(page)) === regrouped!.pack).toBe(!isChanged);
      expect(map.depthOf(page)).toBe(isChanged ? 8 : 1);
    }
    await mustBeWhole();
  });

  it('is nothing when the next checkpoint takes over no segments, and not done twice', async () => {
    const { chain, vm, map, ahead, mustBeWhole } = await prepare();
    expect(await ahead()).toBe(40);
    expect(await ahead()).toBe(0);
    vm.page(1)[0] = 7;
    await vm.checkpoint(chain, { map });
    expect(await ahead()).toBe(0);
    await mustBeWhole();
  });

  it('leaves nothing behind when all of its pages changed, when the checkpoint fails, and when there is none', async () => {
    const folder = join(top, 'ahead');
    const { backend, chain, vm, map, ahead, mustBeWhole } = await prepare(new FileBackend(folder));
    const packs = async (): Promise<number> => (await backend.list('vms/web1/packs/')).length;
    expect(await ahead()).toBe(40);
    const failing = await chain.begin({ kind: 'incremental', parent: chain.latest, layout: vm.layout, map });
    await failing.abort();
    expect(await packs()).toBe(8);
    expect(await ahead()).toBe(40);
    for (let page = BUSY.from; page < BUSY.to; page++) vm.page(page)[0] = 7;
    expect((await vm.checkpoint(chain, { map })).regrouped).toBeUndefined();
    expect(await packs()).toBe(9);
    await mustBeWhole();
    expect(await backend.removeUnfinished!('')).toBe(0);
  });

  it('is dropped by a base, and by closing the chain', async () => {
    const { backend, chain, vm, ahead, mustBeWhole } = await prepare();
    expect(await ahead()).toBe(40);
    const base = await chain.begin({ kind: 'base', parent: null, layout: vm.layout });
    await base.abort();
    expect(await ahead()).toBe(40);
    await chain.close();
    expect(await backend.list('vms/web1/packs/')).toHaveLength(8);
    await mustBeWhole();
  });

  it('is what was done until the checkpoint was due', async () => {
    const { chain, vm, map, reader, ahead, mustBeWhole } = await prepare(undefined, 2500, {
      from: 10,
      to: 1200,
    });
    expect(await ahead(AbortSignal.abort())).toBe(0);
    const due = new AbortController();
    const read = reader.readWithBottoms.bind(reader);
    let reads = 0;
    // It is due while the second part is being read.
    reader.readWithBottoms = (...given) => {
      if (++reads === 2) due.abort();
      return read(...given);
    };
    const pages = await ahead(due.signal);
    expect(reads).toBe(2);
    expect(pages).toBeGreaterThan(0);
    expect(pages).toBeLessThanOrEqual(1024);
    vm.page(1)[0] = 7;
    expect((await vm.checkpoint(chain, { map })).regrouped?.pageCount).toBe(pages);
    await mustBeWhole();
  });
});

describe('what is regrouped', () => {
  const plan = (rise: number, pages: readonly number[]): SegmentPlan => ({
    level: rise,
    rise,
    pages: Uint32Array.from(pages),
    kept: [],
  });
  function mapWith(records: readonly (readonly [page: number, pack: number, depth: number])[]): PageMap {
    const map = new PageMap(20_000);
    for (const [page, pack, depth] of records) map.set(page, makeRef(pack, 0, page % 4000), depth);
    map.commit();
    return map;
  }

  it('is nothing when no segments are taken over, or there is no segment', () => {
    const map = mapWith([[1, 1, 5]]);
    expect(pagesToRegroup(map, plan(0, [1]))).toHaveLength(0);
    expect(pagesToRegroup(map, { ...plan(2, []), pages: null })).toHaveLength(0);
  });

  it('is on the first level what lies deep, and neither zero nor changed', () => {
    const map = mapWith([
      [1, 3, 1],
      [2, 3, 2],
      [3, 3, 8],
      [4, 3, 8],
    ]);
    map.set(4, makeRef(9, 0, 0), 1);
    expect([...pagesToRegroup(map, plan(1, [1, 2, 3, 4, 5]))]).toEqual([2, 3]);
  });

  it('is above that everything but whole pages that lie among many', () => {
    const base = Array.from({ length: 5000 }, (_, i) => [i, 1, 0] as const);
    const map = mapWith([...base, [6000, 2, 0], [6001, 2, 1], [6002, 1, 1]]);
    expect([...pagesToRegroup(map, plan(2, [7, 6000, 6001, 6002]))]).toEqual([6000, 6001, 6002]);
  });

  it('is the deepest when there is too much, in order', () => {
    const map = mapWith([
      [1, 3, 2],
      [2, 3, 7],
      [3, 3, 3],
      [4, 3, 7],
    ]);
    expect([...pagesToRegroup(map, plan(1, [1, 2, 3, 4]), 2)]).toEqual([2, 4]);
  });

  it('costs at most a quarter of what the checkpoints stored, also when some of them are gone', () => {
    const stored = Array.from({ length: 100 }, () => 1000);
    const lately = (count: number): readonly number[] => stored.slice(-count);
    expect(budgetOf(plan(1, []), lately)).toBe(2000);
    expect(budgetOf(plan(2, []), lately)).toBe(16_000);
    expect(budgetOf(plan(2, []), () => [1000, 3000])).toBe(32_000);
    expect(budgetOf(plan(1, []), () => [])).toBe(0);
  });
});
