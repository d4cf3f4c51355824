/** Policies on chains whose clocks were wrong now and then, against a plain model. */

import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';

import { Calendar, parseDuration } from '../../src/repository/forget/calendar.js';
import type { Manifest } from '../../src/format/manifest.js';
import { select, type KeepPolicy } from '../../src/repository/forget/keep-policy.js';

const NOW = Date.parse('2026-06-01T12:00:00Z');
const HOUR = 3_600_000;
const FAR_AHEAD = 11 * 60_000;
const calendar = new Calendar('UTC');

const policy: fc.Arbitrary<KeepPolicy> = fc
  .record({
    last: fc.option(fc.integer({ min: 1, max: 5 }), { nil: undefined }),
    hourly: fc.option(fc.integer({ min: 1, max: 5 }), { nil: undefined }),
    daily: fc.option(fc.integer({ min: 1, max: 5 }), { nil: undefined }),
    monthly: fc.option(fc.integer({ min: 1, max: 3 }), { nil: undefined }),
    within: fc.option(fc.constantFrom('2h', '3d', '2m').map(parseDuration), { nil: undefined }),
  })
  .filter((rules) => Object.values(rules).some((rule) => rule !== undefined));

/** Ages in hours, oldest first, and somewhere in between those that are dated later than now. */
const chain = fc
  .record({
    ages: fc.array(fc.integer({ min: 0, max: 2000 }), { minLength: 1, maxLength: 30 }),
    ahead: fc.array(fc.record({ at: fc.nat({ max: 30 }), byMs: fc.integer({ min: FAR_AHEAD, max: 1e11 }) }), {
      maxLength: 6,
    }),
  })
  .map(({ ages, ahead }) => {
    const times = ages.sort((a, b) => b - a).map((hours) => NOW - hours * HOUR);
    const all = times.map((timeMs) => ({ timeMs, isAhead: false }));
    for (const { at, byMs } of ahead)
      all.splice(at % (all.length + 1), 0, { timeMs: NOW + byMs, isAhead: true });
    return all.map(({ timeMs, isAhead }, i) => ({
      isAhead,
      manifest: { id: `${i}`, seq: i + 1, time: new Date(timeMs).toISOString() } as unknown as Manifest,
    }));
  });

describe('a policy', () => {
  it('keeps, beside those dated later than now, just what it would keep without them', () => {
    fc.assert(
      fc.property(chain, policy, (all, rules) => {
        const manifests = all.map(({ manifest }) => manifest);
        const plausible = all.flatMap(({ isAhead, manifest }) => (isAhead ? [] : [manifest]));
        const { kept, removed, misdated } = select(manifests, rules, calendar, NOW);
        const without = select(plausible, rules, calendar, NOW);
        expect(misdated).toEqual(manifests.filter((manifest) => !plausible.includes(manifest)));
        expect(removed).toEqual(without.removed);
        expect(kept.map(({ manifest }) => manifest)).toEqual(
          manifests.filter((manifest) => !without.removed.includes(manifest)),
        );
        expect(kept.every(({ reasons }) => reasons.length > 0)).toBe(true);
        // The newest of all, and the newest that can be judged.
        expect(removed).not.toContain(manifests.at(-1));
        expect(removed).not.toContain(plausible.at(-1));
      }),
    );
  });

  it('removes nothing when the clock of this host was set back behind them all', () => {
    fc.assert(
      fc.property(chain, policy, fc.integer({ min: 0, max: NOW - 3000 * HOUR }), (all, rules, nowMs) => {
        const manifests = all.map(({ manifest }) => manifest);
        expect(select(manifests, rules, calendar, nowMs).removed).toEqual([]);
      }),
    );
  });

  it('keeps the newest of as many periods as it says, in whatever order the times come', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 200 }), { minLength: 1, maxLength: 40 }),
        fc.integer({ min: 1, max: 6 }),
        (ages, hourly) => {
          const manifests = ages.map(
            (hours, i) =>
              ({
                id: `${i}`,
                seq: i + 1,
                time: new Date(NOW - hours * HOUR).toISOString(),
              }) as unknown as Manifest,
          );
          // The model: the last one of each hour, in the order of the chain, and of these the last so many.
          const newestOfHour = ages
            .map((hours, i) => ({ hours, i }))
            .filter(({ hours, i }) => ages.lastIndexOf(hours) === i)
            .slice(-hourly)
            .map(({ i }) => `${i}`);
          const { kept } = select(manifests, { hourly }, calendar, NOW);
          const byRule = kept.filter(({ reasons }) => reasons.includes('hourly'));
          expect(byRule.map(({ manifest }) => manifest.id)).toEqual(newestOfHour);
        },
      ),
    );
  });
});
