import { describe, expect, it } from '@jest/globals';

import { before, Calendar, parseDuration } from '../../src/repository/forget/calendar.js';
import { select, type KeepPolicy } from '../../src/repository/forget/keep-policy.js';
import type { Manifest } from '../../src/format/manifest.js';

/** Of these times, oldest first; only what a policy looks at. */
function chainOf(times: readonly string[]): readonly Manifest[] {
  return times.map((time, i) => ({ id: `${i}`, seq: i + 1, time }) as unknown as Manifest);
}

/** Times kept, newest first, each with its reasons. */
function kept(
  times: readonly string[],
  policy: KeepPolicy,
  timeZone = 'UTC',
  nowMs = Infinity,
): readonly string[] {
  const chain = chainOf(times);
  const selection = select(chain, policy, new Calendar(timeZone), nowMs);
  expect([...selection.kept.map(({ manifest }) => manifest), ...selection.removed]).toHaveLength(
    chain.length,
  );
  return selection.kept.map(({ manifest, reasons }) => `${manifest.time}: ${reasons.join(', ')}`).reverse();
}

const HOURLY = Array.from({ length: 60 }, (_, hour) =>
  new Date(Date.UTC(2026, 0, 1, hour, 30)).toISOString(),
);

describe('a policy', () => {
  it('keeps the last so many', () => {
    expect(kept(HOURLY, { last: 2 })).toEqual([
      '2026-01-03T11:30:00.000Z: last',
      '2026-01-03T10:30:00.000Z: last',
    ]);
  });

  it('keeps the newest of each day, and the oldest checkpoint while it may keep more', () => {
    expect(kept(HOURLY, { daily: 5 })).toEqual([
      '2026-01-03T11:30:00.000Z: daily',
      '2026-01-02T23:30:00.000Z: daily',
      '2026-01-01T23:30:00.000Z: daily',
      '2026-01-01T00:30:00.000Z: oldest daily',
    ]);
    expect(kept(HOURLY, { daily: 3 })).toHaveLength(3);
  });

  it('counts days that have a checkpoint, however far apart they are', () => {
    const times = [
      '2026-01-01T10:00:00Z',
      '2026-03-01T10:00:00Z',
      '2026-09-01T10:00:00Z',
      '2026-09-01T11:00:00Z',
    ];
    expect(kept(times, { daily: 2 })).toEqual(['2026-09-01T11:00:00Z: daily', '2026-03-01T10:00:00Z: daily']);
  });

  it('keeps what any of its rules keeps, and says which', () => {
    expect(kept(HOURLY, { last: 1, hourly: 2, daily: 2, monthly: 1 })).toEqual([
      '2026-01-03T11:30:00.000Z: last, hourly, daily, monthly',
      '2026-01-03T10:30:00.000Z: hourly',
      '2026-01-02T23:30:00.000Z: daily',
    ]);
  });

  it('begins weeks on Monday, across the end of a year', () => {
    const times = [
      '2026-12-27T12:00:00Z', // Sunday
      '2026-12-28T12:00:00Z', // Monday
      '2026-12-31T12:00:00Z',
      '2027-01-03T12:00:00Z', // Sunday
      '2027-01-04T12:00:00Z',
    ];
    expect(kept(times, { weekly: 3 })).toEqual([
      '2027-01-04T12:00:00Z: weekly',
      '2027-01-03T12:00:00Z: weekly',
      '2026-12-27T12:00:00Z: weekly',
    ]);
  });

  it('keeps what is at most so much older than the newest, however old that is', () => {
    expect(kept(HOURLY, { within: parseDuration('2h') })).toEqual([
      '2026-01-03T11:30:00.000Z: within 2h',
      '2026-01-03T10:30:00.000Z: within 2h',
      '2026-01-03T09:30:00.000Z: within 2h',
    ]);
  });

  it('always keeps the newest', () => {
    for (const policy of [{ last: 1 }, { hourly: 1 }, { monthly: 1 }, { within: parseDuration('1h') }])
      expect(kept(HOURLY, policy)[0]).toContain('2026-01-03T11:30:00.000Z');
  });

  it.each<KeepPolicy>([{}, { last: 0 }, { hourly: 0, daily: 0 }])(
    'that keeps nothing is refused: %j',
    (policy) => {
      expect(() => kept(HOURLY, policy)).toThrow(expect.objectContaining({ code: 'USAGE' }));
    },
  );

  it('has nothing to say of an empty chain', () => {
    expect(select([], { last: 1 }, new Calendar('UTC'), 0)).toEqual({ kept: [], removed: [], misdated: [] });
  });
});

describe('checkpoints that are dated later than now', () => {
  const now = Date.parse('2026-01-03T12:00:00Z');
  const times = [...HOURLY.slice(0, 59), '2031-05-05T05:05:05.000Z', HOURLY[59]!];

  it('are kept, and count for nothing', () => {
    const misdated = '2031-05-05T05:05:05.000Z: dated later than now';
    expect(kept(times, { last: 2 }, 'UTC', now)).toEqual([
      '2026-01-03T11:30:00.000Z: last',
      misdated,
      '2026-01-03T10:30:00.000Z: last',
    ]);
    expect(kept(times, { within: parseDuration('1h') }, 'UTC', now)).toEqual([
      '2026-01-03T11:30:00.000Z: within 1h',
      misdated,
      '2026-01-03T10:30:00.000Z: within 1h',
    ]);
  });

  it('leave the others to the policy when they are the newest', () => {
    const [newest, ...others] = kept([...HOURLY, times[59]!], { within: parseDuration('1h') }, 'UTC', now);
    expect(newest).toContain('dated later than now');
    expect(others).toHaveLength(2);
  });

  it('are all there are when the clock was set back: nothing goes', () => {
    expect(kept(HOURLY, { last: 1 }, 'UTC', Date.parse('1970-01-01T00:00:00Z'))).toHaveLength(60);
  });

  it('are those only that are later by more than clocks of two hosts differ', () => {
    const soon = '2026-01-03T12:05:00Z';
    expect(kept([...HOURLY, soon], { last: 1 }, 'UTC', now)).toEqual([`${soon}: last`]);
  });

  it('are those as well whose time is none', () => {
    expect(kept([...HOURLY, 'yesterday'], { last: 1 }, 'UTC', now)[0]).toBe(
      'yesterday: dated later than now',
    );
  });
});

describe('a clock that goes to and fro', () => {
  it('does not make two hours count as many', () => {
    const night = Array.from({ length: 20 }, (_, i) => HOURLY[50 + (i % 2)]!);
    expect(kept([...HOURLY.slice(0, 50), ...night], { hourly: 4 })).toHaveLength(4);
    expect(kept([...HOURLY.slice(0, 50), ...night], { hourly: 4 }).at(-1)).toContain(HOURLY[48]!);
  });

  it('keeps more and not less when the newest checkpoint is dated long ago', () => {
    expect(kept([...HOURLY, '1970-01-01T00:00:00Z'], { within: parseDuration('1d') })).toHaveLength(61);
  });
});

describe('days of the time zone', () => {
  const times = ['2026-06-01T21:30:00Z', '2026-06-01T22:30:00Z'];

  it('are those of where it runs, not of UTC', () => {
    expect(kept(times, { daily: 2 }, 'UTC')[0]).toContain(': daily');
    expect(kept(times, { daily: 2 }, 'UTC')[1]).toContain('oldest daily');
    // Half past eleven, and half past midnight of the next day.
    expect(kept(times, { daily: 2 }, 'Europe/Berlin')).toEqual([
      `${times[1]!}: daily`,
      `${times[0]!}: daily`,
    ]);
  });

  it('that have an hour twice have two of it', () => {
    // Clocks go back from 3:00 (UTC+2) to 2:00 (UTC+1) at 01:00 UTC.
    const night = [
      '2026-10-25T00:10:00Z',
      '2026-10-25T00:40:00Z',
      '2026-10-25T01:10:00Z',
      '2026-10-25T01:40:00Z',
    ];
    expect(kept(night, { hourly: 2 }, 'Europe/Berlin')).toEqual([
      `${night[3]!}: hourly`,
      `${night[1]!}: hourly`,
    ]);
  });

  it('that lack an hour are one day all the same', () => {
    const night = [
      '2026-03-28T23:30:00Z',
      '2026-03-29T00:30:00Z',
      '2026-03-29T01:30:00Z',
      '2026-03-29T21:30:00Z',
    ];
    expect(kept(night, { daily: 1 }, 'Europe/Berlin')).toEqual([`${night[3]!}: daily`]);
    expect(kept(night, { hourly: 9 }, 'Europe/Berlin')).toHaveLength(4);
  });

  it('may begin at half hours of UTC', () => {
    const hour = ['2026-06-01T10:15:00Z', '2026-06-01T10:45:00Z'];
    expect(kept(hour, { hourly: 2 }, 'Asia/Kolkata')).toEqual([`${hour[1]!}: hourly`, `${hour[0]!}: hourly`]);
  });
});

describe('a length of time', () => {
  const from = Date.parse('2026-05-31T12:00:00Z');

  it.each([
    ['36h', '2026-05-30T00:00:00.000Z'],
    ['14d', '2026-05-17T12:00:00.000Z'],
    ['3m', '2026-02-28T12:00:00.000Z'],
    ['1y6m', '2024-11-30T12:00:00.000Z'],
    ['1y2m3d4h', '2025-03-28T08:00:00.000Z'],
  ])('%s', (text, expected) => {
    expect(new Date(before(from, parseDuration(text))).toISOString()).toBe(expected);
  });

  it.each(['', '0d', '5', 'd', '1d2y', '-1d', '1.5h', '10s'])('is not "%s"', (text) => {
    expect(() => parseDuration(text)).toThrow(expect.objectContaining({ code: 'USAGE' }));
  });
});
