import { describe, expect, it } from '@jest/globals';
import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { splitByOwner } from '../../src/bitmap/split-by-owner.js';

describe('DirtyBitmap', () => {
  it('numbers pages from the lowest bit of the first byte', () => {
    const bitmap = DirtyBitmap.fromBytes(
      130,
      Uint8Array.of(1, 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0),
    );
    expect([...bitmap.toRuns()]).toEqual([0, 1, 15, 1, 64, 1, 129, 1]);
    expect(bitmap.words).toEqual(BigUint64Array.of(0x8001n, 1n, 2n));
  });

  it('refuses a bitmap of another length or with bits past the end', () => {
    const size = { code: 'DIRTY_BITMAP_SIZE' };
    const make =
      (pageCount: number, ...words: bigint[]) =>
      () =>
        DirtyBitmap.fromWords(pageCount, BigUint64Array.from(words));
    expect(make(64, 1n << 63n)).not.toThrow();
    expect(make(64, 0n, 0n)).toThrow(expect.objectContaining(size));
    expect(make(65, 0n)).toThrow(expect.objectContaining(size));
    expect(make(63, 1n << 63n)).toThrow(expect.objectContaining(size));
    expect(make(1, 1n << 33n)).toThrow(expect.objectContaining(size));
    expect(make(1, 1n)).not.toThrow();
    expect(() => DirtyBitmap.fromBytes(64, new Uint8Array(7))).toThrow(expect.objectContaining(size));
  });

  it('refuses to be combined with one of another size', () => {
    const size = expect.objectContaining({ code: 'DIRTY_BITMAP_SIZE' });
    // The same number of words, but not of pages.
    expect(() => new DirtyBitmap(65).or(new DirtyBitmap(66))).toThrow(size);
    expect(() => new DirtyBitmap(65).andNot(new DirtyBitmap(66))).toThrow(size);
  });

  it('refuses pages it does not have', () => {
    const bitmap = new DirtyBitmap(65);
    for (const page of [65, 127, -1, 0.5, NaN]) {
      expect(() => bitmap.set(page)).toThrow(RangeError);
      expect(() => bitmap.has(page)).toThrow(RangeError);
    }
    expect(() => bitmap.setRange(64, 2)).toThrow(RangeError);
    expect(() => DirtyBitmap.fromRuns(65, Uint32Array.of(60, 6))).toThrow(RangeError);
    expect(bitmap.isEmpty()).toBe(true);
  });

  it('is empty for no pages', () => {
    const bitmap = new DirtyBitmap(0);
    expect([bitmap.count(), bitmap.isEmpty(), bitmap.toRuns().length]).toEqual([0, true, 0]);
    expect(DirtyBitmap.fromBytes(0, new Uint8Array(0)).pageCount).toBe(0);
  });

  it('joins runs across the windows a large bitmap is scanned in, and finds more runs than linear memory has room for', () => {
    const pageCount = 8 * 1024 * 1024;
    const bitmap = new DirtyBitmap(pageCount);
    bitmap.setRange(2_000_000, 4_500_000);
    bitmap.set(pageCount - 1);
    // More edges than are kept between two windows, the last in the middle of a run.
    for (let page = 0; page < 1_999_999; page += 2) bitmap.set(page);
    for (let page = 6_600_000; page < 8_000_000; page += 2) bitmap.set(page);
    const expected: number[] = [];
    for (let page = 0; page < 1_999_999; page += 2) expected.push(page, 1);
    expected.push(2_000_000, 4_500_000);
    for (let page = 6_600_000; page < 8_000_000; page += 2) expected.push(page, 1);
    expected.push(pageCount - 1, 1);
    expect(
      Buffer.compare(
        Buffer.from(bitmap.toRuns().slice().buffer),
        Buffer.from(Uint32Array.from(expected).buffer),
      ),
    ).toBe(0);
    expect(bitmap.count()).toBe(1_000_000 + 4_500_000 + 700_000 + 1);
    bitmap.setRange(0, pageCount);
    expect([...bitmap.toRuns()]).toEqual([0, pageCount]);
  });
});

describe('splitByOwner', () => {
  it('cuts runs where the owner changes', () => {
    const split = splitByOwner(Uint32Array.of(2, 9, 20, 1), 4, 2);
    expect(split.map((runs) => [...runs])).toEqual([
      [2, 2, 8, 3],
      [4, 4, 20, 1],
    ]);
  });

  it('gives a sole owner the runs whole, as a copy', () => {
    const runs = Uint32Array.of(2, 9, 20, 1);
    const [mine] = splitByOwner(runs, 4, 1);
    expect(mine).toEqual(runs);
    expect(mine).not.toBe(runs);
  });

  it('refuses empty stripes and no owners', () => {
    expect(() => splitByOwner(new Uint32Array(0), 0, 1)).toThrow(RangeError);
    expect(() => splitByOwner(new Uint32Array(0), 1, 0)).toThrow(RangeError);
  });
});
