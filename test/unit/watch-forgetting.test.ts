import { describe, expect, it } from '@jest/globals';

import type { CheckpointSession } from '../../src/checkpoint/session.js';
import { ClockWatch } from '../../src/cli/clock-watch.js';
import type { Reporter } from '../../src/cli/reporter.js';
import { WatchForgetting } from '../../src/cli/watch-forgetting.js';
import { CheckpointError } from '../../src/errors.js';
import type { Manifest } from '../../src/format/manifest.js';
import { parseDuration } from '../../src/repository/forget/calendar.js';
import type { KeepPolicy } from '../../src/repository/forget/keep-policy.js';

const HOUR = 3_600_000;

/** What a watcher says and does, with a clock that can be set. */
function watcher(policy: KeepPolicy, forget: () => Promise<unknown>) {
  const warnings: string[] = [];
  const errors: string[] = [];
  const clock = { nowMs: 1000 * HOUR, uptimeMs: 5 * HOUR };
  let asked = 0;
  const session = {
    vmName: 'web1',
    forget: () => {
      asked++;
      return forget();
    },
  } as unknown as CheckpointSession;
  const reporter: Reporter = {
    canAsk: false,
    progress: () => undefined,
    warning: (text) => warnings.push(text),
    summary: () => undefined,
    error: ({ code }) => errors.push(code),
    end: () => undefined,
  };
  const forgetting = new WatchForgetting(
    {
      policy,
      withDisks: false,
      clock: new ClockWatch(
        () => clock.nowMs,
        () => clock.uptimeMs,
      ),
    },
    reporter,
  );
  return {
    forgetting,
    warnings,
    errors,
    clock,
    asked: () => asked,
    due: () => forgetting.afterCheckpoint(session, true, new AbortController().signal),
  };
}

const NOTHING = {
  kept: [],
  removed: [],
  misdated: [] as Manifest[],
  problems: [],
  disks: [],
  freedBytes: 0,
  isShortOfRoom: false,
  removedObjects: 0,
  thinnedPacks: 0,
};

describe('a watcher with a policy', () => {
  it('skips it, with a warning, while checkpoints are dated later than now, and goes on', async () => {
    let error: CheckpointError | undefined = new CheckpointError('CHECKPOINT_MISDATED', 'abcd is of 2031');
    const watch = watcher({ last: 3 }, () =>
      error === undefined ? Promise.resolve(NOTHING) : Promise.reject(error),
    );
    await watch.due();
    expect(watch.warnings).toEqual([expect.stringContaining('nothing is forgotten: abcd is of 2031')]);
    expect(watch.errors).toEqual([]);
    expect(watch.forgetting.isWhole).toBe(false);
    error = undefined;
    await watch.due();
    expect(watch.warnings).toHaveLength(1);
    expect(watch.asked()).toBe(2);
  });

  const within: KeepPolicy = { within: parseDuration('7d') };

  it('does not go by the age of checkpoints once the clock was set forward', async () => {
    const watch = watcher(within, () => Promise.resolve(NOTHING));
    await watch.due();
    expect(watch.asked()).toBe(1);
    watch.clock.nowMs += 1000 * HOUR;
    await watch.due();
    expect(watch.asked()).toBe(1);
    expect(watch.warnings).toEqual([expect.stringContaining('set forward')]);
    // Set right again.
    watch.clock.nowMs -= 1000 * HOUR;
    await watch.due();
    expect(watch.asked()).toBe(2);
  });

  it('takes neither slewing nor a sleep of the host for that', async () => {
    const watch = watcher(within, () => Promise.resolve(NOTHING));
    watch.clock.nowMs += 100 * HOUR + 9 * 60_000;
    watch.clock.uptimeMs += 100 * HOUR;
    await watch.due();
    expect(watch.asked()).toBe(1);
  });

  it('goes on counting periods and checkpoints whatever the clock does', async () => {
    const watch = watcher({ last: 3, daily: 7 }, () => Promise.resolve(NOTHING));
    watch.clock.nowMs += 1000 * HOUR;
    await watch.due();
    expect(watch.asked()).toBe(1);
    expect(watch.warnings).toEqual([]);
  });
});
