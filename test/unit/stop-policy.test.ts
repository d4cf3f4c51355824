import { describe, expect, it } from '@jest/globals';

import { StopPolicy } from '../../src/checkpoint/pause/stop-policy.js';

describe('the stop policy', () => {
  it('stops at once when the pause is predicted to hold', () => {
    expect(new StopPolicy({ maxPauseMs: 10, maxRounds: 8 }).decide(0, 100, undefined)).toBe('stop');
  });

  it('copies while the VM runs when it would not', () => {
    expect(new StopPolicy({ maxPauseMs: 10, maxRounds: 8 }).decide(0, 262_144, undefined)).toBe(
      'another-round',
    );
  });

  it('gives up on rounds that do not shrink the set', () => {
    const policy = new StopPolicy({ maxPauseMs: 10, maxRounds: 8 });
    expect(policy.decide(2, 100_000, 110_000)).toBe('stop-hopeless');
    expect(policy.decide(2, 50_000, 110_000)).toBe('another-round');
  });

  it('gives up after the last round', () => {
    expect(new StopPolicy({ maxPauseMs: 10, maxRounds: 8 }).decide(8, 50_000, 200_000)).toBe('stop-hopeless');
  });

  it('learns how fast this machine copies and how long its fixed part takes', () => {
    const policy = new StopPolicy({ maxPauseMs: 10, maxRounds: 8 });
    const before = policy.predictPauseMs(10_000);
    for (let i = 0; i < 20; i++) policy.learn({ totalMs: 7, copyMs: 5, copiedBytes: 50e6 });
    expect(policy.predictPauseMs(0)).toBeCloseTo(2, 1);
    expect(policy.predictPauseMs(10_000)).toBeLessThan(before);
  });

  it('learns nothing about the rate from a small copy', () => {
    const policy = new StopPolicy({ maxPauseMs: 10, maxRounds: 8 });
    const perPage = policy.predictPauseMs(1000) - policy.predictPauseMs(0);
    policy.learn({ totalMs: 5, copyMs: 1, copiedBytes: 4096 });
    expect(policy.predictPauseMs(1000) - policy.predictPauseMs(0)).toBeCloseTo(perPage, 6);
  });
});
