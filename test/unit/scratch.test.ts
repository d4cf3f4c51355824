import { describe, expect, it } from '@jest/globals';

import { Scratch } from '../../src/host/scratch.js';

describe('scratch memory', () => {
  it('hands out again what was given back, cut to size', () => {
    const scratch = new Scratch();
    const first = scratch.take(10_000);
    scratch.give(first);
    const second = scratch.take(9_000);
    expect(second).toHaveLength(9_000);
    expect(second.buffer).toBe(first.buffer);
  });

  it('never hands the same memory out twice at a time', () => {
    const scratch = new Scratch();
    scratch.give(scratch.take(5000));
    const taken = [scratch.take(5000), scratch.take(5000), scratch.take(0), scratch.take(0)];
    expect(new Set(taken.map(({ buffer }) => buffer)).size).toBe(taken.length);
  });

  it('makes memory of the kind it was asked for, and keeps no large one', () => {
    const scratch = new Scratch((sizeBytes) => new Uint8Array(new SharedArrayBuffer(sizeBytes)));
    const large = scratch.take(5 << 20);
    expect(large.buffer).toBeInstanceOf(SharedArrayBuffer);
    scratch.give(large);
    expect(scratch.take(5 << 20).buffer).not.toBe(large.buffer);
  });
});
