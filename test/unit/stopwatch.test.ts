import { describe, expect, it } from '@jest/globals';

import { Stopwatch } from '../../src/checkpoint/pause/stopwatch.js';

describe('the stopwatch of a pause', () => {
  it('leaves out what came before its start and after its first stop', () => {
    const watch = new Stopwatch(0);
    watch.start();
    watch.stop();
    const whole = watch.elapsedMs();
    watch.stop();
    expect(watch.elapsedMs()).toBe(whole);
    expect(whole).toBeLessThan(new Stopwatch(0).elapsedMs());
  });

  it('adds a stretch of the whole to a phase', () => {
    const watch = new Stopwatch(0);
    watch.stop();
    watch.since('stop', 0);
    expect(watch.total('stop')).toBe(watch.elapsedMs());
    watch.since('stop', watch.elapsedMs() - 2);
    expect(watch.total('stop') - watch.elapsedMs()).toBeCloseTo(2);
    expect(watch.total('resume')).toBe(0);
  });
});
