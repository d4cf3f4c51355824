import { describe, expect, it } from '@jest/globals';

import { defaultPauseLimitMs } from '../../src/checkpoint/pause/pause-limit.js';

describe('the limit of a pause', () => {
  const plain = { maxPauseMs: 10, hasHook: false, hasDiskSnapshots: false, memoryBytes: 0 };

  it.each([
    ['is some seconds more than what was asked for', plain, 10_010],
    ['leaves a hook its own limit', { ...plain, hasHook: true }, 40_010],
    ['leaves disk snapshots theirs', { ...plain, hasDiskSnapshots: true }, 40_010],
    ['is longer where all memory may be copied', { ...plain, memoryBytes: 2 ** 30 }, 18_202],
  ])('%s', (_, work, expected) => {
    expect(defaultPauseLimitMs(work)).toBe(expected);
  });
});
