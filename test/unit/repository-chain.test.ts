import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from '@jest/globals';

import { layOut, regionOfPage } from '../../src/hypervisor/memory-layout.js';
import { ChainReader } from '../../src/repository/read/chain-reader.js';
import type { CheckpointReader } from '../../src/repository/read/checkpoint-reader.js';
import { diffCheckpoints } from '../../src/repository/diff.js';
import { MAX_SEGMENTS, MERGE_FACTOR } from '../../src/format/index-policy.js';
import { BOTTOM_LEVEL } from '../../src/format/manifest.js';
import { PageMap } from '../../src/repository/read/page-map.js';
import { encodePatchFrame } from '../../src/format/patch-frame.js';
import { MAX_DELTA_DEPTH, packOfRef } from '../../src/format/record-ref.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import type { StorageBackend } from '../../src/storage/backend.js';
import { FileBackend } from '../../src/storage/file.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import {
  commitFields,
  IDENTITY,
  LAYOUT,
  ModelVm,
  mustReadBack,
  readBack,
  type Expected,
} from './repository-model.js';
import { columnsOf } from '../support/map-columns.js';

const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

function fileBackend(): StorageBackend {
  const folder = mkdtempSync(join(tmpdir(), 'cairn-chain-'));
  folders.push(folder);
  return new FileBackend(join(folder, 'repo'));
}

const BACKENDS: readonly (readonly [string, () => StorageBackend])[] = [
  ['memory', () => new MemoryBackend()],
  ['file', fileBackend],
];

describe.each(BACKENDS)('a chain of checkpoints in a %s backend', (_, makeBackend) => {
  it('gives every one of 40 checkpoints back as it was, verifies, and keeps the index bounded', async () => {
    const repository = await Repository.init(makeBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    const expected: Expected[] = [];
    const levels = new Set<number>();
    vm.scribble(250);
    for (let n = 0; n < 40; n++) {
      const manifest = await vm.checkpoint(chain);
      expected.push(vm.snapshot(manifest));
      expect(manifest.segments.length).toBeLessThanOrEqual(MAX_SEGMENTS);
      expect(manifest.segments.filter(({ level }) => level === BOTTOM_LEVEL)).toHaveLength(1);
      for (const { level } of manifest.segments) {
        levels.add(level);
        if (level !== BOTTOM_LEVEL) {
          const ofLevel = manifest.segments.filter((segment) => segment.level === level);
          expect(ofLevel.length).toBeLessThan(MERGE_FACTOR);
        }
      }
      vm.scribble(3);
    }
    // Unless the levels are really used, the bound above says nothing.
    expect(levels).toContain(1);
    await chain.close();
    for (const one of expected) await mustReadBack(repository, one);
    const result = await verify(repository);
    expect(result.problems).toEqual([]);
    expect(result.orphans).toEqual([]);
    expect(result.checkpoints).toBe(40);
    expect(result.bytes).toBeGreaterThan(0);
  });
});

describe('a checkpoint', () => {
  async function start(): Promise<{ repository: Repository; backend: MemoryBackend }> {
    const backend = new MemoryBackend();
    return { repository: await Repository.init(backend), backend };
  }

  it('holds deltas no deeper than the format allows, and reaches that depth', async () => {
    const { repository } = await start();
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    const depths: number[] = [];
    vm.page(5).fill(1);
    for (let n = 0; n < MAX_DELTA_DEPTH + 4; n++) {
      vm.page(5)[n] = 77;
      depths.push((await vm.checkpoint(chain)).maxDepth);
    }
    // On the zero page, eight deltas on that, then a whole page.
    expect(depths).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2]);
    await mustReadBack(repository, vm.snapshot(await repository.find('latest')));
  });

  it('goes back to the record at the bottom of a page at the greatest depth', async () => {
    const { repository, backend } = await start();
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.page(5).forEach((_, at, page) => (page[at] = (at * 7) % 251));
    vm.page(6).set([1, 2, 3]);
    await vm.checkpoint(chain);
    const bottoms = await chain.loadMap(chain.latest!);
    const contents = Buffer.concat([vm.page(5), vm.page(6)]);
    for (let n = 0; n < MAX_DELTA_DEPTH; n++) {
      vm.page(5)[n] = 77;
      if (n < 3) vm.page(6)[100 + n] = 88;
      await vm.checkpoint(chain);
    }
    const map = await chain.loadMap(chain.latest!);
    const reader = new ChainReader(backend, repository.id, chain.latest!.chain);
    const into = new Uint8Array(2 * PAGE_SIZE_BYTES);
    const found = await reader.readBottoms(Float64Array.of(map.refOf(5), map.refOf(6)), into);
    expect([...found.refs]).toEqual([bottoms.refOf(5), bottoms.refOf(6)]);
    expect([...found.deltas]).toEqual([map.depthOf(5), map.depthOf(6)]);
    expect(Buffer.compare(into, contents)).toBe(0);
    // One more difference, from the bottom.
    vm.page(5)[50] = 99;
    const back = new PageMap(LAYOUT.pageSpan);
    back.set(5, found.refs[0]!, 0);
    const before = vm.committed.slice();
    before.set(into.subarray(0, PAGE_SIZE_BYTES), 5 * PAGE_SIZE_BYTES);
    const frame = vm.encode(Uint32Array.of(5), back, before);
    const writer = await chain.begin({ kind: 'incremental', parent: chain.latest, layout: LAYOUT, map });
    await writer.appendFrame(frame);
    expect(map.depthOf(5)).toBe(1);
    const manifest = await writer.commit(commitFields());
    vm.deviceState = new Uint8Array(0);
    await mustReadBack(repository, vm.snapshot(manifest));
    expect((await verify(repository)).problems).toEqual([]);
  });

  it('gives back a page of the deepest row of patches that the format allows', async () => {
    const { repository } = await start();
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const map = new PageMap(LAYOUT.pageSpan);
    const writer = await chain.begin({ kind: 'base', parent: null, layout: LAYOUT, map });
    let contents = new Uint8Array(0);
    for (let depth = 0; depth <= MAX_DELTA_DEPTH; depth++) {
      const prefix = contents;
      contents = Uint8Array.from({ length: PAGE_SIZE_BYTES }, (_, at) => (at * 7 + depth) % 251);
      // The lowest has no sources, each other one has the page as it was before.
      const sources = depth === 0 ? new Float64Array(0) : Float64Array.of(map.refOf(5));
      const pages = Uint32Array.of(5);
      await writer.appendFrame(encodePatchFrame({ pages, contents, sources, prefix, depth, digest: 0n }, 3));
    }
    const manifest = await writer.commit(commitFields());
    const into = new Uint8Array(PAGE_SIZE_BYTES);
    await repository.reader(manifest).readPages(Uint32Array.of(5), into);
    expect(Buffer.compare(into, contents)).toBe(0);
  });

  it('refuses a record that is deeper, and one whose base is not the present record', async () => {
    const { repository } = await start();
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.page(5).fill(1);
    await vm.checkpoint(chain);
    const map = await chain.loadMap(chain.latest!);
    vm.page(5)[0] = 9;
    const frame = vm.encode(Uint32Array.of(5), map, vm.committed);
    await vm.checkpoint(chain);
    const now = await chain.loadMap(chain.latest!);
    const writer = await chain.begin({ kind: 'incremental', parent: chain.latest, layout: LAYOUT, map: now });
    await expect(writer.appendFrame(frame)).rejects.toThrow(/not the page's present record/);
    await writer.abort();
  });

  it('keeps the last of several records of a page, each building on the one before', async () => {
    const { repository } = await start();
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(100);
    await vm.checkpoint(chain);
    const map = await chain.loadMap(chain.latest!);
    const writer = await chain.begin({ kind: 'incremental', parent: chain.latest, layout: LAYOUT, map });
    let before = vm.committed;
    for (let round = 0; round < 3; round++) {
      vm.page(7)[round] = 200 + round;
      await vm.write(writer, map, Uint32Array.of(7), before);
      expect(writer.isCommitted(map.refOf(7))).toBe(false);
      before = vm.memory.slice();
    }
    const manifest = await writer.commit(commitFields());
    expect(manifest.deviceState).toBeNull();
    vm.deviceState = new Uint8Array(0);
    await mustReadBack(repository, vm.snapshot(manifest));
    expect((await verify(repository)).problems).toEqual([]);
  });

  it('remembers that a page became zero', async () => {
    const { repository } = await start();
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.page(3).fill(8);
    vm.page(4).fill(8);
    await vm.checkpoint(chain);
    vm.page(3).fill(0);
    const manifest = await vm.checkpoint(chain);
    expect((await chain.loadMap(manifest)).get(3)).toEqual({ ref: 0, depth: 0 });
    await mustReadBack(repository, vm.snapshot(manifest));
  });

  it('without changes adds no pack beyond its device state, and no index segment', async () => {
    const { repository, backend } = await start();
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(50);
    const first = await vm.checkpoint(chain);
    const map = await chain.loadMap(first);
    const writer = await chain.begin({ kind: 'incremental', parent: first, layout: LAYOUT, map });
    const second = await writer.commit(commitFields());
    expect(second.packs).toEqual([]);
    expect(second.segments).toEqual(first.segments);
    expect(await backend.list('vms/web1/index/')).toHaveLength(1);
  });

  it('spreads over several packs when one is full', async () => {
    const { repository } = await start();
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    for (let page = 0; page < 200; page++) vm.page(page).set(Buffer.from(`page ${page} `.repeat(100)));
    const manifest = await vm.checkpoint(chain, { packTargetBytes: 1500 });
    expect(manifest.packs.length).toBeGreaterThan(2);
    for (const { sizeBytes } of manifest.packs) expect(sizeBytes).toBeLessThan(2 * 1500);
    await mustReadBack(repository, vm.snapshot(manifest));
    expect((await verify(repository)).problems).toEqual([]);
  });

  it('can be a new base in the same chain, which needs nothing older', async () => {
    const { repository, backend } = await start();
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(50);
    await vm.checkpoint(chain);
    vm.scribble(5);
    vm.committed = new Uint8Array(vm.memory.length);
    const base = await vm.checkpoint(chain, { parent: null });
    expect(base).toMatchObject({ kind: 'base', parentId: null });
    const oldest = Math.min(...base.packs.map(({ seq }) => seq));
    const map = await chain.loadMap(base);
    expect([...columnsOf(map).refs].every((ref) => ref === 0 || packOfRef(ref) >= oldest)).toBe(true);
    await backend.remove('vms/web1/packs/00000001');
    await mustReadBack(repository, vm.snapshot(base));
  });

  it('follows its regions when they are added, moved and resized', async () => {
    const { repository } = await start();
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(200);
    const first = await vm.checkpoint(chain);
    const before = vm.snapshot(first);
    const grown = layOut([
      { id: 'dimm0', sizeBytes: 70 * PAGE_SIZE_BYTES },
      { id: 'vga.vram', sizeBytes: 16 * PAGE_SIZE_BYTES },
      { id: 'pc.ram', sizeBytes: 300 * PAGE_SIZE_BYTES },
    ]);
    const [dimm, vga, ram] = grown.regions;
    const after = new ModelVm(grown);
    const move = (from: Uint8Array, fromPage: number, toPage: number, count: number): void => {
      const bytes = from.subarray(fromPage * PAGE_SIZE_BYTES, (fromPage + count) * PAGE_SIZE_BYTES);
      after.memory.set(bytes, toPage * PAGE_SIZE_BYTES);
    };
    move(vm.memory, LAYOUT.regions[0]!.firstPage, ram!.firstPage, 300);
    move(vm.memory, LAYOUT.regions[1]!.firstPage, vga!.firstPage, 16);
    after.committed = after.memory.slice();
    after.page(dimm!.firstPage)[0] = 1;
    after.page(ram!.firstPage)[1] = 99;
    const second = await after.checkpoint(chain);
    expect(second.segments.map(({ level }) => level)).toEqual([BOTTOM_LEVEL]);
    await mustReadBack(repository, after.snapshot(second));
    await mustReadBack(repository, before);
    expect((await verify(repository)).problems).toEqual([]);
    const diff = await diffCheckpoints(repository, first, second);
    expect(diff.regions.find(({ id }) => id === 'dimm0')).toEqual({ id: 'dimm0', pages: 1, changedBytes: 1 });
    expect(diff.regions.find(({ id }) => id === 'pc.ram')).toEqual({
      id: 'pc.ram',
      pages: 1,
      changedBytes: 1,
    });
  });

  it('leaves nothing behind when it is aborted, and the map is as before', async () => {
    const { repository, backend } = await start();
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(50);
    const first = await vm.checkpoint(chain);
    const objects = await backend.list('');
    const map = await chain.loadMap(first);
    const before = columnsOf(map);
    vm.scribble(50);
    const writer = await chain.begin({
      kind: 'incremental',
      parent: first,
      layout: LAYOUT,
      map,
      packTargetBytes: 2000,
    });
    await vm.write(writer, map, vm.dirtyPages(), vm.committed);
    expect(columnsOf(map).refs).not.toEqual(before.refs);
    await writer.abort();
    expect(columnsOf(map)).toEqual(before);
    expect(map.changedPages()).toHaveLength(0);
    expect(await backend.list('')).toEqual(objects);
    const manifest = await vm.checkpoint(chain, { map });
    await mustReadBack(repository, vm.snapshot(manifest));
  });

  it('takes frames from several callers at once', async () => {
    const { repository } = await start();
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(300);
    const map = await vm.mapOf(chain, null);
    const writer = await chain.begin({ kind: 'base', parent: null, layout: LAYOUT, map });
    const dirty = vm.dirtyPages();
    await Promise.all(
      [0, 1, 2].map((share) =>
        vm.write(
          writer,
          map,
          dirty.filter((page) => page % 3 === share),
          vm.committed,
        ),
      ),
    );
    vm.deviceState = new Uint8Array(0);
    const manifest = await writer.commit(commitFields());
    await mustReadBack(repository, vm.snapshot(manifest));
    expect((await verify(repository)).problems).toEqual([]);
  });
});

async function readAll(reader: CheckpointReader): Promise<CheckpointReader> {
  const pages = reader.pagesAsStored();
  while ((await pages.next()).done !== true);
  return reader;
}

describe('a reader', () => {
  it('gives chosen pages, whatever the size of its cache', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(250);
    for (let n = 0; n < 6; n++) {
      await vm.checkpoint(chain);
      vm.scribble(60);
    }
    const manifest = await vm.checkpoint(chain);
    const pages = Uint32Array.of(0, 3, 17, 64, 299, 320, 339);
    for (const cacheBytes of [0, 20_000, 1 << 30]) {
      const into = new Uint8Array(pages.length * PAGE_SIZE_BYTES);
      await repository.reader(manifest, { cacheBytes }).readPages(pages, into);
      expect(Buffer.compare(into, Buffer.concat([...pages].map((page) => vm.page(page))))).toBe(0);
    }
  });

  // With room for none, each patch frame is unpacked within the one that needs it; with room for a few, reads are made in parts.
  it.each([
    [0, 3],
    [60, 4],
    [250, 12],
    [1000, 12],
  ])(
    'gives every page once, in the order in which they are stored, with room for %i pages that patches are held against',
    async (sourcePages, checkpoints) => {
      const repository = await Repository.init(new MemoryBackend());
      const chain = await repository.openChainWriter('web1', IDENTITY);
      // The regions lie next to each other.
      const layout = layOut([
        { id: 'pc.ram', sizeBytes: 256 * PAGE_SIZE_BYTES },
        { id: 'vga.vram', sizeBytes: 64 * PAGE_SIZE_BYTES },
      ]);
      const vm = new ModelVm(layout, 7 + sourcePages);
      vm.scribble(250);
      for (let n = 0; n < checkpoints; n++) {
        await vm.checkpoint(chain);
        vm.scribble(90);
      }
      const manifest = await vm.checkpoint(chain);
      const options = { cacheBytes: 0, sourceBytes: sourcePages * PAGE_SIZE_BYTES };
      const memory = Buffer.alloc(vm.memory.length);
      const seen = new Set<number>();
      const reader = repository.reader(manifest, options);
      for await (const { firstPage, pageCount, bytes } of reader.pagesAsStored()) {
        expect(regionOfPage(layout, firstPage)).toBe(regionOfPage(layout, firstPage + pageCount - 1));
        for (let page = firstPage; page < firstPage + pageCount; page++) {
          expect(seen.has(page)).toBe(false);
          seen.add(page);
        }
        if (bytes !== null) memory.set(bytes, firstPage * PAGE_SIZE_BYTES);
      }
      expect(seen.size * PAGE_SIZE_BYTES).toBe(layout.sizeBytes);
      expect(memory.equals(vm.memory)).toBe(true);
      const { decodedBytes } = reader.effort;
      const { effort } = await readAll(repository.reader(manifest, { cacheBytes: 0 }));
      if (sourcePages === 1000) expect(decodedBytes).toBe(effort.decodedBytes);
      else expect(decodedBytes).toBeGreaterThan(effort.decodedBytes);
    },
  );

  it('gives records in any order and more than once', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(250);
    await vm.checkpoint(chain);
    vm.scribble(100);
    const manifest = await vm.checkpoint(chain);
    const map = await chain.loadMap(manifest);
    const pages = [200, 3, 200, 5, 299, 0, 3];
    const into = new Uint8Array(pages.length * PAGE_SIZE_BYTES).fill(0xee);
    await chain.reader().readPagesByRef(
      Float64Array.from(pages, (page) => map.refOf(page)),
      into,
    );
    expect(Buffer.compare(into, Buffer.concat(pages.map((page) => vm.page(page))))).toBe(0);
  });

  it('stops when it is told to', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(250);
    const manifest = await vm.checkpoint(chain);
    const abort = new AbortController();
    const pages = repository.reader(manifest).pages(abort.signal);
    await pages.next();
    abort.abort();
    await expect(pages.next()).rejects.toMatchObject({ code: 'INTERRUPTED' });
  });

  it('reads a checkpoint while a writer goes on', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(250);
    const first = vm.snapshot(await vm.checkpoint(chain));
    const manifest = await repository.find(first.id);
    const reading = readBack(repository, manifest);
    vm.scribble(50);
    await vm.checkpoint(chain);
    expect(Buffer.compare((await reading).memory, first.memory)).toBe(0);
  });
});

describe('the difference of two checkpoints', () => {
  it('counts pages and bytes whose content differs, by region', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.page(1).fill(1);
    vm.page(2).fill(2);
    const a = await vm.checkpoint(chain);
    vm.page(1).fill(9, 0, 10);
    vm.page(2).fill(0);
    vm.page(LAYOUT.regions[1]!.firstPage).fill(5, 100, 103);
    vm.page(40)[0] = 1;
    const middle = await vm.checkpoint(chain);
    vm.page(40)[0] = 0;
    vm.page(1).fill(1);
    const b = await vm.checkpoint(chain);
    expect(await diffCheckpoints(repository, a, middle)).toEqual({
      pages: 4,
      changedBytes: 10 + 4096 + 3 + 1,
      regions: [
        { id: 'pc.ram', pages: 3, changedBytes: 10 + 4096 + 1 },
        { id: 'vga.vram', pages: 1, changedBytes: 3 },
      ],
    });
    // Page 1 has another record by now, and the content it began with.
    expect(await diffCheckpoints(repository, a, b)).toMatchObject({ pages: 2, changedBytes: 4096 + 3 });
    expect(await diffCheckpoints(repository, b, b)).toMatchObject({ pages: 0, changedBytes: 0 });
  });
});
