import fc from 'fast-check';
import { describe, expect, it } from '@jest/globals';

import { compress, compressInBlocks, decompress, decompressAsync } from '../../src/ffi/zstd.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { MAX_LEVELS, MAX_SEGMENTS, MERGE_FACTOR, planIndex } from '../../src/format/index-policy.js';
import { BOTTOM_LEVEL, type SegmentEntry } from '../../src/format/manifest.js';
import { PageMap } from '../../src/repository/read/page-map.js';
import { frameOfRef, isRecordRef, makeRef, packOfRef, recordOfRef } from '../../src/format/record-ref.js';
import { columnsOf } from '../support/map-columns.js';

describe('a record reference', () => {
  it('is taken apart into what it was made of, and orders by writing', () => {
    const parts = fc.tuple(
      fc.integer({ min: 1, max: 2 ** 24 - 1 }),
      fc.nat(2 ** 17 - 1),
      fc.nat(2 ** 12 - 2),
    );
    fc.assert(
      fc.property(parts, parts, (a, b) => {
        const ref = makeRef(...a);
        expect([packOfRef(ref), frameOfRef(ref), recordOfRef(ref)]).toEqual(a);
        expect(isRecordRef(ref)).toBe(true);
        const inOrder = a[0] - b[0] || a[1] - b[1] || a[2] - b[2];
        expect(Math.sign(ref - makeRef(...b))).toBe(Math.sign(inOrder));
      }),
    );
  });

  it.each([0, 1, 2 ** 29 - 1, 2 ** 53, -1, 2 ** 29 + 0.5, NaN])('is not %d', (ref) =>
    expect(isRecordRef(ref)).toBe(false),
  );
});

describe('a page map', () => {
  it('takes back exactly what was set since the last commit', () => {
    const changes = fc
      .array(fc.tuple(fc.nat(99), fc.nat(1000), fc.nat(8)))
      .map((all) => all.map(([page, ref, depth]) => [page, ref, ref === 0 ? 0 : depth] as const));
    fc.assert(
      fc.property(changes, changes, (kept, undone) => {
        const map = new PageMap(100);
        for (const [page, ref, depth] of kept) map.set(page, ref, depth);
        expect([...map.changedPages()]).toEqual(
          [...new Set(kept.map(([page]) => page))].sort((a, b) => a - b),
        );
        map.commit();
        const before = columnsOf(map);
        const deepest = Math.max(...before.depths);
        expect(map.maxDepth()).toBe(deepest);
        for (const [page, ref, depth] of undone) map.set(page, ref, depth);
        map.rollback();
        expect(columnsOf(map)).toEqual(before);
        expect(map.maxDepth()).toBe(deepest);
        expect(map.changedPages()).toHaveLength(0);
      }),
    );
  });

  it('follows regions into another layout', () => {
    const from = layOut([
      { id: 'a', sizeBytes: 4096 * 10 },
      { id: 'b', sizeBytes: 4096 * 10 },
    ]);
    const to = layOut([
      { id: 'b', sizeBytes: 4096 * 5 },
      { id: 'c', sizeBytes: 4096 },
      { id: 'a', sizeBytes: 4096 * 20 },
    ]);
    const map = new PageMap(from.pageSpan);
    map.set(9, 109, 1);
    map.set(64, 200, 2);
    map.set(70, 206, 3);
    map.commit();
    const mapped = map.remap(from, to);
    expect(mapped.get(0)).toEqual({ ref: 200, depth: 2 });
    expect(mapped.get(128 + 9)).toEqual({ ref: 109, depth: 1 });
    expect(mapped.countRecords()).toBe(2);
    expect(mapped.maxDepth()).toBe(2);
    expect(mapped.changedPages()).toHaveLength(0);
  });

  it('has no page outside its span', () => {
    for (const page of [-1, 64, 1.5e9]) expect(() => new PageMap(64).refOf(page)).toThrow(RangeError);
  });
});

describe('the index', () => {
  it('stays within its bound over 5000 checkpoints, and every page is found at its newest', () => {
    // Each segment as the set of checkpoints that it covers: together they must cover all, newest first.
    const covers = new Map<number, readonly number[]>();
    let segments: readonly SegmentEntry[] = [];
    let seq = 0;
    for (let n = 0; n < 5000; n++) {
      const plan = planIndex(segments, 1, true);
      const all = plan.level === BOTTOM_LEVEL;
      const taken = all ? segments : plan.merged;
      const entryCount = all ? 1e6 : plan.merged.reduce((sum, segment) => sum + segment.entryCount, 1);
      covers.set(++seq, [n, ...taken.flatMap((segment) => covers.get(segment.seq)!)]);
      segments = [{ seq, level: plan.level, entryCount, sizeBytes: 0, directorySha256: '' }, ...plan.kept];
      const order = segments.flatMap((segment) => covers.get(segment.seq)!);
      expect(order.length).toBe(n + 1);
      expect(order.every((value, i) => value === n - i)).toBe(true);
      expect(segments.length).toBeLessThanOrEqual(
        (MERGE_FACTOR - 1) * (Math.floor(Math.log(n + 1) / Math.log(8)) + 1) + 1,
      );
    }
    expect(segments.length).toBeLessThanOrEqual(MAX_SEGMENTS);
  });

  it('is written anew when the changes are more than half of it, or pages have moved', () => {
    const bottom = { seq: 1, level: BOTTOM_LEVEL, entryCount: 100, sizeBytes: 0, directorySha256: '' };
    expect(planIndex([bottom], 50, true)).toMatchObject({ level: 0, kept: [bottom] });
    expect(planIndex([bottom], 51, true)).toMatchObject({ level: BOTTOM_LEVEL, kept: [] });
    expect(planIndex([bottom], 1, false)).toMatchObject({ level: BOTTOM_LEVEL, kept: [] });
    expect(planIndex([], 0, true)).toMatchObject({ level: BOTTOM_LEVEL, kept: [] });
    expect(MAX_LEVELS).toBeLessThan(BOTTOM_LEVEL);
  });
});

describe('zstd', () => {
  it('brings back what was compressed in blocks, wherever they were cut', () => {
    const text = Buffer.from('page record '.repeat(900));
    const noise = Uint8Array.from({ length: 9000 }, (_, i) => Math.imul(i + 1, 0x9e3779b1) >>> 24);
    const bytes = Buffer.concat([text, noise]);
    for (const cuts of [[], [1], [text.length], [5, text.length, bytes.length - 1]]) {
      for (const level of [1, 3, 6, 19]) {
        expect(decompress(compressInBlocks(bytes, cuts, level), bytes.length)).toEqual(new Uint8Array(bytes));
      }
    }
    expect(() => compressInBlocks(bytes, [], 0)).toThrow(RangeError);
    // The context is shared: neither kind of call may leave anything behind for the other.
    expect(decompress(compress(bytes, 3), bytes.length)).toEqual(new Uint8Array(bytes));
  });

  const text = new Uint8Array(Buffer.from('over and over and over again '.repeat(500)));

  it('gives back what went in', async () => {
    for (const level of [1, 3, 19]) {
      const packed = compress(text, level);
      expect(packed.length).toBeLessThan(text.length / 10);
      expect(decompress(packed, text.length)).toEqual(text);
      expect(await decompressAsync(packed, text.length)).toEqual(text);
    }
    const none = new Uint8Array(0);
    expect(decompress(compress(none, 3), 0)).toEqual(none);
  });

  it('works on a part of a larger buffer', () => {
    const packed = compress(text.subarray(7, 1007), 3);
    const within = Buffer.concat([Buffer.alloc(5), packed, Buffer.alloc(5)]).subarray(5, 5 + packed.length);
    expect(decompress(within, 1000)).toEqual(text.slice(7, 1007));
  });

  it('refuses damage and a wrong length, either way', async () => {
    const packed = compress(text, 3);
    for (const [input, length] of [
      [packed, text.length - 1],
      [packed, text.length + 1],
      [packed.subarray(1), text.length],
      [packed.subarray(0, -1), text.length],
      [new Uint8Array(0), 5],
    ] as const) {
      expect(() => decompress(input, length)).toThrow(expect.objectContaining({ code: 'ZSTD_FAILED' }));
      await expect(decompressAsync(input, length)).rejects.toMatchObject({ code: 'ZSTD_FAILED' });
    }
    expect(() => compress(text, 0)).toThrow(RangeError);
  });
});
