import { describe, expect, it } from '@jest/globals';

import { PageCache } from '../../src/pool/page-cache.js';

describe('the cache of previous versions', () => {
  it('gives each page a slot of its own and finds it again', () => {
    const cache = new PageCache(8192, 4);
    const slots = [10, 20, 30, 40].map((page) => cache.admit(page)!);
    expect(new Set(slots).size).toBe(4);
    expect(slots.every((slot) => slot >= 8192 && slot % 4096 === 0 && slot < 8192 + 4 * 4096)).toBe(true);
    expect([10, 20, 30, 40].map((page) => cache.find(page))).toEqual(slots);
    expect(cache.find(50)).toBeUndefined();
  });

  it('stays within its budget and evicts what was not used lately', () => {
    const cache = new PageCache(4096, 2);
    cache.admit(1);
    cache.admit(2);
    cache.admit(3);
    expect(cache.size).toBe(2);
    expect(cache.find(3)).toBeDefined();
    cache.find(2);
    cache.admit(4);
    expect([1, 2, 3, 4].filter((page) => cache.find(page) !== undefined)).toHaveLength(2);
  });

  it('keeps nothing when the budget is nothing', () => {
    const cache = new PageCache(4096, 0);
    expect(cache.admit(1)).toBeUndefined();
    expect(cache.find(1)).toBeUndefined();
  });

  it('forgets everything on clear', () => {
    const cache = new PageCache(4096, 2);
    cache.admit(1);
    cache.clear();
    expect(cache.find(1)).toBeUndefined();
    expect(cache.size).toBe(0);
  });
});
