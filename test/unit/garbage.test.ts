import { setTimeout as sleep } from 'node:timers/promises';

import { describe, expect, it } from '@jest/globals';

import { collectGarbage, letHeapGrow } from '../../src/host/garbage.js';

describe('the collection between checkpoints', () => {
  it('frees what nothing refers to any more', async () => {
    letHeapGrow();
    collectGarbage();
    await sleep(200);
    const held = Array.from({ length: 64 }, () => new Uint8Array(1 << 20));
    const before = process.memoryUsage().arrayBuffers;
    held.length = 0;
    collectGarbage();
    // The memory of buffers is freed on a thread beside, some time after the collection.
    const isFreed = (): boolean => process.memoryUsage().arrayBuffers < before - (32 << 20);
    for (let i = 0; i < 1000 && !isFreed(); i++) await sleep(20);
    expect(isFreed()).toBe(true);
  });
});
