import { describe, expect, it } from '@jest/globals';

import { MissedIntervals } from '../../src/cli/missed-intervals.js';

describe('intervals in which no checkpoint began', () => {
  const took = (totalMs: number, regroupMs = 0) => ({ totalMs, regroupMs });

  it('are none while each checkpoint is done before the next is due', () => {
    const missed = new MissedIntervals(5000);
    expect(missed.after(took(4000), 5000)).toBeUndefined();
    expect(missed.count).toBe(0);
  });

  it('are counted, and said with what took so long', () => {
    const missed = new MissedIntervals(5000);
    expect(missed.after(took(9000, 8000), 12_500)).toBe(
      'the next checkpoint comes late: this one took 12.50 s of the 5.00 s between two ' +
        '(checkpoint 1.00 s, regrouping 8.00 s, the rest, such as applying the policy, 3.50 s)',
    );
    expect(missed.count).toBe(2);
  });

  it('are said once for several in a row', () => {
    const missed = new MissedIntervals(1000);
    expect(missed.after(took(1500), 1500)).toContain('comes late');
    expect(missed.after(took(1500), 1500)).toBeUndefined();
    expect(missed.after(took(500), 500)).toBeUndefined();
    expect(missed.after(took(1500), 1500)).toContain('comes late');
    expect(missed.count).toBe(3);
  });
});
