import { describe, expect, it } from '@jest/globals';

import { freeBytesOf, missingBytes, packTargetIn } from '../../src/repository/room.js';
import { MemoryBackend } from '../../src/storage/memory.js';

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;

describe('the room that is left', () => {
  it('makes packs small, so that each can be written anew beside itself', () => {
    expect(packTargetIn(1000 * GIB)).toBe(GIB);
    expect(packTargetIn(32 * GIB)).toBe(GIB);
    expect(packTargetIn(3.2 * GIB)).toBe(Math.floor(0.1 * GIB));
    for (const little of [8 * MIB, 1, 0]) expect(packTargetIn(little)).toBe(256 * KIB);
    expect(packTargetIn(undefined)).toBe(GIB);
  });

  it('falls short when two of the largest of the last increments do not fit', () => {
    const stored = [2 * MIB, 5 * MIB, 1 * MIB];
    expect(missingBytes(11 * MIB, stored)).toBe(0);
    expect(missingBytes(8 * MIB, stored)).toBe(3 * MIB);
    expect(missingBytes(0, [])).toBe(0);
    expect(missingBytes(undefined, stored)).toBe(0);
  });

  it('is not known where the storage does not say, or fails to', async () => {
    const backend = new MemoryBackend();
    expect(await freeBytesOf(backend, {})).toBeUndefined();
    const failing = Object.assign(new MemoryBackend(), {
      freeBytes: () => Promise.reject(new Error('not now')),
    });
    expect(await freeBytesOf(failing, {})).toBeUndefined();
  });
});
