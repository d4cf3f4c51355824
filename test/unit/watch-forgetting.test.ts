import { describe, expect, it } from '@jest/globals';

import type { CheckpointSession } from '../../src/checkpoint/session.js';
import { ClockWatch } from '../../src/cli/clock-watch.js';
import type { Reporter } from '../../src/cli/reporter.js';
import { WatchForgetting } from '../../src/cli/watch-forgetting.js';
import { CheckpointError } from '../../src/errors.js';
import type { Manifest } from '../../src/format/manifest.js';
import { parseDuration } from '../../src/repository/forget/calendar.js';
import type { ForgetOptions } from '../../src/repository/forget/forget.js';
import type { KeepPolicy } from '../../src/repository/forget/keep-policy.js';

const HOUR = 3_600_000;

/** What a watcher says and does, with a clock that can be set. */
function watcher(policy: KeepPolicy, forget: () => Promise<unknown>, checkpoint = () => Promise.resolve()) {
  const warnings: string[] = [];
  const errors: string[] = [];
  const clock = { nowMs: 1000 * HOUR, uptimeMs: 5 * HOUR };
  let asked = 0;
  /** What was done, in order: a checkpoint, or forgetting by these options. */
  const done: unknown[] = [];
  const room = { missingBytes: 0 };
  const session = {
    vmName: 'web1',
    missingBytes: () => Promise.resolve(room.missingBytes),
    checkpoint: () => {
      done.push('checkpoint');
      return checkpoint();
    },
    forget: (_: KeepPolicy, { thinAbove, onlyIfAny }: ForgetOptions) => {
      asked++;
      done.push({ thinAbove, onlyIfAny });
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
  const { signal } = new AbortController();
  return {
    forgetting,
    done,
    room,
    /** A checkpoint as the watcher takes it, and what follows it. */
    take: async () => {
      await forgetting.checkpoint(session, signal);
      await forgetting.afterCheckpoint(session, false, signal);
    },
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

describe('a watcher whose room is short', () => {
  const REMOVED = [{ id: 'abcd', manifest: null }];
  const THOROUGH = { thinAbove: undefined, onlyIfAny: true };

  it('applies its policy before the checkpoint, and frees all that can be freed', async () => {
    const watch = watcher({ last: 3 }, () =>
      Promise.resolve({ ...NOTHING, removed: REMOVED, freedBytes: 500 }),
    );
    await watch.take();
    watch.room.missingBytes = 1000;
    await watch.take();
    await watch.take();
    watch.room.missingBytes = 0;
    await watch.take();
    expect(watch.done).toEqual([
      ...['checkpoint', THOROUGH, 'checkpoint', THOROUGH, 'checkpoint'],
      ...['checkpoint'],
    ]);
    expect(watch.warnings).toEqual([]);
  });

  it('does so less and less often when that frees next to nothing, and again at once when it does', async () => {
    let freedBytes = 0;
    const watch = watcher({ last: 3 }, () => Promise.resolve({ ...NOTHING, removed: REMOVED, freedBytes }));
    await watch.take();
    watch.room.missingBytes = 1000;
    for (let n = 0; n < 7; n++) await watch.take();
    const checkpointsBefore = (): readonly number[] =>
      watch.done.flatMap((what, i) =>
        what === 'checkpoint' ? [] : [watch.done.slice(0, i).filter((one) => one === 'checkpoint').length],
      );
    expect(checkpointsBefore()).toEqual([1, 3, 7]);
    freedBytes = 250;
    for (let n = 0; n < 9; n++) await watch.take();
    expect(checkpointsBefore()).toEqual([1, 3, 7, 15, 16]);
  });

  it('looks again with each checkpoint while there is none to be forgotten', async () => {
    const watch = watcher({ last: 3 }, () => Promise.resolve(NOTHING));
    watch.room.missingBytes = 1000;
    for (let n = 0; n < 4; n++) await watch.take();
    expect(watch.asked()).toBe(3);
  });

  it('takes the checkpoint again when there was no room for it, unless nothing could be freed', async () => {
    let freedBytes = 100;
    const full = new CheckpointError('STORAGE_FULL', 'no room');
    let tries = 0;
    const watch = watcher(
      { last: 3 },
      () => Promise.resolve({ ...NOTHING, removed: freedBytes > 0 ? REMOVED : [], freedBytes }),
      () => (++tries === 2 ? Promise.resolve() : Promise.reject(full)),
    );
    await watch.take();
    expect(watch.done).toEqual(['checkpoint', { thinAbove: undefined, onlyIfAny: undefined }, 'checkpoint']);
    freedBytes = 0;
    await expect(watch.take()).rejects.toBe(full);
    expect(tries).toBe(3);
  });
});
