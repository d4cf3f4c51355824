import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { splitByOwner } from '../../src/bitmap/split-by-owner.js';
import { expandRuns } from '../../src/types.js';

interface SetModel {
  readonly pageCount: number;
  readonly pages: ReadonlySet<number>;
}

function pagesOf(bitmap: DirtyBitmap): number[] {
  return Array.from({ length: bitmap.pageCount }, (_, page) => page).filter((page) => bitmap.has(page));
}

function sorted(pages: Iterable<number>): number[] {
  return [...pages].sort((a, b) => a - b);
}

function build({ pageCount, pages }: SetModel): DirtyBitmap {
  const bitmap = new DirtyBitmap(pageCount);
  for (const page of pages) bitmap.set(page);
  return bitmap;
}

const pageCount = fc.integer({ min: 1, max: 700 });
const pagesBelow = (count: number) =>
  fc
    .array(fc.tuple(fc.nat(count - 1), fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 150 }))), {
      maxLength: 20,
    })
    .map(
      (ranges) =>
        new Set(
          ranges.flatMap(([first, length]) =>
            Array.from({ length: Math.min(length, count - first) }, (_, i) => first + i),
          ),
        ),
    );
const model: fc.Arbitrary<SetModel> = pageCount.chain((count) =>
  pagesBelow(count).map((pages) => ({ pageCount: count, pages })),
);
const twoModels = pageCount.chain((count) =>
  fc.tuple(pagesBelow(count), pagesBelow(count)).map(
    ([a, b]) =>
      [
        { pageCount: count, pages: a },
        { pageCount: count, pages: b },
      ] as const,
  ),
);

describe('DirtyBitmap', () => {
  it('behaves as a set of pages', () => {
    fc.assert(
      fc.property(model, (set) => {
        const bitmap = build(set);
        expect(pagesOf(bitmap)).toEqual(sorted(set.pages));
        expect(bitmap.count()).toBe(set.pages.size);
        expect(bitmap.isEmpty()).toBe(set.pages.size === 0);
      }),
    );
  });

  it('adds and takes away the pages of another', () => {
    fc.assert(
      fc.property(twoModels, ([a, b]) => {
        const other = build(b);
        const union = build(a);
        union.or(other);
        expect(pagesOf(union)).toEqual(sorted(new Set([...a.pages, ...b.pages])));
        const rest = build(a);
        rest.andNot(other);
        expect(pagesOf(rest)).toEqual(sorted([...a.pages].filter((page) => !b.pages.has(page))));
        const byRuns = { union: build(a), rest: build(a) };
        byRuns.union.setRuns(other.toRuns());
        byRuns.rest.clearRuns(other.toRuns());
        expect(byRuns.union.bytes).toEqual(union.bytes);
        expect(byRuns.rest.bytes).toEqual(rest.bytes);
        expect(pagesOf(other)).toEqual(sorted(b.pages));
      }),
    );
  });

  it('sets ranges, and only them', () => {
    const range = pageCount.chain((count) =>
      fc.nat(count).chain((first) => fc.tuple(fc.constant(count), fc.constant(first), fc.nat(count - first))),
    );
    fc.assert(
      fc.property(range, ([count, first, length]) => {
        const bitmap = new DirtyBitmap(count);
        bitmap.setRange(first, length);
        expect(pagesOf(bitmap)).toEqual(Array.from({ length }, (_, i) => first + i));
      }),
      { numRuns: 500 },
    );
  });

  it('turns into merged ascending runs and back', () => {
    fc.assert(
      fc.property(model, (set) => {
        const bitmap = build(set);
        const runs = bitmap.toRuns();
        expect([...expandRuns(runs)]).toEqual(sorted(set.pages));
        for (let i = 2; i < runs.length; i += 2)
          expect(runs[i]!).toBeGreaterThan(runs[i - 2]! + runs[i - 1]!);
        expect(DirtyBitmap.fromRuns(set.pageCount, runs).words).toEqual(bitmap.words);
      }),
    );
  });

  it('clones into a set of its own', () => {
    fc.assert(
      fc.property(model, (set) => {
        const bitmap = build(set);
        const copy = bitmap.clone();
        bitmap.clear();
        expect(bitmap.isEmpty()).toBe(true);
        expect(pagesOf(copy)).toEqual(sorted(set.pages));
      }),
    );
  });
});

describe('splitByOwner', () => {
  it('gives each page to the owner of its stripe, once, in merged ascending runs', () => {
    fc.assert(
      fc.property(
        model,
        fc.integer({ min: 1, max: 100 }),
        fc.integer({ min: 1, max: 7 }),
        (set, stripePages, owners) => {
          const split = splitByOwner(build(set).toRuns(), stripePages, owners);
          expect(split.length).toBe(owners);
          split.forEach((runs, owner) => {
            const mine = sorted(set.pages).filter(
              (page) => Math.floor(page / stripePages) % owners === owner,
            );
            expect([...expandRuns(runs)]).toEqual(mine);
            for (let i = 2; i < runs.length; i += 2)
              expect(runs[i]!).toBeGreaterThan(runs[i - 2]! + runs[i - 1]!);
          });
        },
      ),
    );
  });
});
