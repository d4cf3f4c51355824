import fc from 'fast-check';
import { describe, expect, it } from '@jest/globals';

import { encodeSegment, SegmentDirectory, segmentHeadBytes } from '../../src/format/index-segment.js';
import { decodeSlice, SLICE_ENTRIES, type IndexEntries } from '../../src/format/index-slice.js';
import { makeRef } from '../../src/format/record-ref.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { PageIndex } from '../../src/repository/read/page-index.js';
import { CHUNK_PAGES } from '../../src/repository/read/map-chunk.js';
import { PageMap } from '../../src/repository/read/page-map.js';
import { Repository } from '../../src/repository/repository.js';
import type { StorageBackend } from '../../src/storage/backend.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { columnsOf } from '../support/map-columns.js';
import { commitFields, IDENTITY, seeded } from './repository-model.js';

const ID = { seq: 5, level: 2, owner: new Uint8Array(16).fill(9) };
const ENTRIES = {
  pages: Uint32Array.of(1, 5, 6),
  refs: Float64Array.of(makeRef(1, 0, 0), 0, makeRef(2 ** 24 - 1, 2 ** 17 - 1, 4094)),
  depths: Uint8Array.of(0, 0, 8),
};

function damage(): object {
  return expect.objectContaining({ code: 'REPO_DAMAGED' });
}

/** Of entries that lie one after the other. */
function encode(entries: IndexEntries, level = 3, id = ID): ReturnType<typeof encodeSegment> {
  const from = entries.pages.indexOf.bind(entries.pages);
  const part = (pages: Uint32Array): IndexEntries => {
    const at = from(pages[0]!);
    const to = at + pages.length;
    return { pages, refs: entries.refs.subarray(at, to), depths: entries.depths.subarray(at, to) };
  };
  return encodeSegment(id, entries.pages, part, level);
}

function decode(
  { bytes, directorySha256 }: ReturnType<typeof encodeSegment>,
  entryCount: number,
  pageSpan: number,
): readonly IndexEntries[] {
  const listed = { entryCount, sizeBytes: bytes.length, directorySha256 };
  const head = bytes.subarray(0, segmentHeadBytes(entryCount));
  const directory = new SegmentDirectory('k', head, ID, listed, pageSpan);
  return Array.from({ length: directory.sliceCount }, (_, number) => {
    const { offsetBytes, lengthBytes } = directory.range(number, number + 1);
    return decodeSlice(bytes.subarray(offsetBytes, offsetBytes + lengthBytes), directory.place(number));
  });
}

describe('an index segment', () => {
  it.each([0, 3])('gives back its entries (level %d)', (level) => {
    expect(decode(encode(ENTRIES, level), 3, 7)).toEqual([ENTRIES]);
    const none = { pages: new Uint32Array(0), refs: new Float64Array(0), depths: new Uint8Array(0) };
    expect(decode(encode(none, level), 0, 7)).toEqual([]);
  });

  it('is cut into slices of a fixed number of entries, each read on its own', () => {
    const count = SLICE_ENTRIES * 2 + 5;
    const entries = {
      pages: Uint32Array.from({ length: count }, (_, i) => i * 3),
      refs: Float64Array.from({ length: count }, (_, i) => makeRef(1 + (i % 7), i, 2)),
      depths: Uint8Array.from({ length: count }, (_, i) => i % 9),
    };
    const slices = decode(encode(entries), count, count * 3);
    expect(slices.map(({ pages }) => pages.length)).toEqual([SLICE_ENTRIES, SLICE_ENTRIES, 5]);
    expect(slices.flatMap(({ pages }) => [...pages])).toEqual([...entries.pages]);
    expect(slices.flatMap(({ refs }) => [...refs])).toEqual([...entries.refs]);
    expect(slices.flatMap(({ depths }) => [...depths])).toEqual([...entries.depths]);
  });

  it.each<[string, Partial<IndexEntries>]>([
    ['a page twice', { pages: Uint32Array.of(1, 1, 2) }],
    ['pages out of order', { pages: Uint32Array.of(3, 2, 4) }],
    ['a page outside the memory', { pages: Uint32Array.of(3, 4, 7) }],
    ['what is no reference', { refs: Float64Array.of(1, 0, 0) }],
    ['a zero page with a depth', { depths: Uint8Array.of(0, 1, 8) }],
    ['too great a depth', { depths: Uint8Array.of(9, 0, 8) }],
  ])('is refused with %s', (_, bad) => {
    expect(() => decode(encode({ ...ENTRIES, ...bad }), 3, 7)).toThrow(damage());
  });

  it('is refused in the place of another', () => {
    const others = [
      { ...ID, seq: 6 },
      { ...ID, level: 1 },
      { ...ID, owner: new Uint8Array(16) },
    ];
    for (const other of others) expect(() => decode(encode(ENTRIES, 3, other), 3, 7)).toThrow(damage());
    const { bytes } = encode(ENTRIES);
    const { directorySha256 } = encode({ ...ENTRIES, depths: Uint8Array.of(1, 0, 8) });
    expect(() => decode({ bytes, directorySha256 }, 3, 7)).toThrow(damage());
  });

  it('is refused with any one byte changed', () => {
    const { bytes, directorySha256 } = encode(ENTRIES, 0);
    for (let at = 0; at < bytes.length; at++) {
      const changed = bytes.slice();
      changed[at]! ^= 4;
      expect(() => decode({ bytes: changed, directorySha256 }, 3, 7)).toThrow();
    }
  });
});

describe('a page map', () => {
  it('holds what was set, in whatever form, and shares it with a copy in another layout', () => {
    const span = 5 * CHUNK_PAGES + 64;
    const runs = fc.array(
      fc.tuple(
        fc.nat(span - 1),
        fc.integer({ min: 1, max: 1500 }),
        fc.constantFrom(1, 0),
        fc.nat(8),
        fc.nat(1),
      ),
    );
    fc.assert(
      fc.property(runs, (written) => {
        const map = new PageMap(span);
        const refs = new Float64Array(span);
        const depths = new Uint8Array(span);
        for (const [first, count, step, depth, stays] of written) {
          for (let i = 0; i < count && first + i < span; i++) {
            // Counting up, in disorder, or zero.
            const ref = depth === 8 ? 0 : makeRef(1 + depth, step === 1 ? 7 : (i * 37) % 1000, i % 4000);
            map.set(first + i, ref, ref === 0 ? 0 : depth);
            refs[first + i] = ref;
            depths[first + i] = ref === 0 ? 0 : depth;
          }
          if (stays === 1) map.commit();
        }
        expect(columnsOf(map)).toEqual({ refs, depths });
        map.commit();
        expect(columnsOf(map)).toEqual({ refs, depths });
        expect(map.countRecords()).toBe(refs.filter((ref) => ref !== 0).length);
        for (const page of [0, 1023, 1024, span - 1])
          expect(map.get(page)).toEqual({ ref: refs[page], depth: depths[page] });
        const [from, to] = [
          layOut([{ id: 'a', sizeBytes: span * PAGE_SIZE_BYTES }]),
          layOut([
            { id: 'b', sizeBytes: 64 * PAGE_SIZE_BYTES },
            { id: 'a', sizeBytes: span * PAGE_SIZE_BYTES },
          ]),
        ];
        const moved = columnsOf(map.remap(from, to));
        expect(moved.refs.subarray(64)).toEqual(refs);
        const same = map.remap(from, from);
        if (span > 3000) same.set(3000, makeRef(99, 0, 0), 1);
        expect(columnsOf(map)).toEqual({ refs, depths });
        const differing: number[] = [];
        same.visitDiffering(map, (page) => differing.push(page));
        expect(differing).toEqual([3000]);
      }),
      { numRuns: 15 },
    );
  });
});

describe('the index of a checkpoint', () => {
  /** 20,000 pages, some of them changed in each of five checkpoints; nothing is behind the references. */
  async function chainOf(random: (bound: number) => number): Promise<{
    readonly repository: Repository;
    readonly maps: readonly ReturnType<typeof columnsOf>[];
  }> {
    const repository = await Repository.init(new MemoryBackend());
    const layout = layOut([{ id: 'pc.ram', sizeBytes: 20_000 * PAGE_SIZE_BYTES }]);
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const map = new PageMap(layout.pageSpan);
    const maps = [];
    for (let n = 0; n < 5; n++) {
      const parent = chain.latest;
      const kind = parent === null ? 'base' : 'incremental';
      const writer = await chain.begin({ kind, parent, layout, map });
      for (let page = 0; page < 20_000; page++)
        if (n === 0 ? page % 5 > 0 : random(50) === 0)
          map.set(page, random(9) === 0 ? 0 : makeRef(100 + n, page >>> 8, page & 255), 0);
      await writer.commit(commitFields());
      maps.push(columnsOf(map));
    }
    await chain.close();
    return { repository, maps };
  }

  it('says of single pages, windows and all pages what the map of the writer said', async () => {
    const random = seeded(3);
    const { repository, maps } = await chainOf(random);
    const manifests = (await repository.checkpoints()).manifests;
    for (const [n, manifest] of manifests.entries()) {
      const { refs, depths } = maps[n]!;
      expect(columnsOf(await repository.loadMap(manifest))).toEqual({ refs, depths });
      const index = await PageIndex.open(
        { backend: repository.backend, repositoryId: repository.id },
        manifest,
        {},
      );
      const pages = Uint32Array.from({ length: 100 }, () => random(20_000));
      expect([...(await index.refsOf(pages))]).toEqual([...pages].map((page) => refs[page]));
      for (const [first, end] of [
        [0, 1],
        [8191, 8193],
        [random(10_000), 10_000 + random(10_000)],
      ] as const)
        expect(await index.window(first, end)).toEqual({
          firstPage: first,
          refs: refs.slice(first, end),
          depths: depths.slice(first, end),
        });
    }
    await expect(repository.reader(manifests[0]!).refsIn(0, 20_100)).rejects.toThrow(RangeError);
  });

  it('reads a slice for a page, and no more of it for a window than lies there', async () => {
    const random = seeded(4);
    const repository = await Repository.init(new MemoryBackend());
    const layout = layOut([{ id: 'pc.ram', sizeBytes: 60_000 * PAGE_SIZE_BYTES }]);
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const map = new PageMap(layout.pageSpan);
    const writer = await chain.begin({ kind: 'base', parent: null, layout, map });
    for (let page = 0; page < 60_000; page++)
      map.set(page, makeRef(1 + random(1000), random(1000), random(1000)), 0);
    const base = await writer.commit(commitFields());
    await chain.close();
    const { sizeBytes, entryCount } = base.segments[0]!;
    expect(sizeBytes).toBeGreaterThan(64 * 1024);
    const { backend, id: repositoryId } = repository;
    const loads: number[] = [];
    const counting: Pick<StorageBackend, 'stat' | 'load'> = {
      stat: (...args) => backend.stat(...args),
      load: async (...args) => {
        const bytes = await backend.load(...args);
        loads.push(bytes.length);
        return bytes;
      },
    };
    const index = await PageIndex.open({ backend: counting as StorageBackend, repositoryId }, base, {});
    expect(loads).toEqual([segmentHeadBytes(entryCount)]);
    await index.refsOf(Uint32Array.of(43_456));
    await index.refsOf(Uint32Array.of(43_457));
    expect(loads).toHaveLength(2);
    expect(loads[1]).toBeLessThan((sizeBytes / entryCount) * SLICE_ENTRIES * 1.5);
    await index.window(3 * SLICE_ENTRIES, 5 * SLICE_ENTRIES);
    expect(loads).toHaveLength(3);
    expect(loads[2]).toBeLessThan((sizeBytes / entryCount) * SLICE_ENTRIES * 3);
  });
});
