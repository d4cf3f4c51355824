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
function watcher(
  policy: KeepPolicy,
  forget: (until: AbortSignal | undefined) => Promise<unknown>,
  checkpoint = () => Promise.resolve(),
  retire: () => Promise<unknown> = () => Promise.resolve({ ...NOTHING, isSwept: false }),
) {
  const warnings: string[] = [];
  const errors: string[] = [];
  const clock = { nowMs: 1000 * HOUR, uptimeMs: 5 * HOUR };
  let asked = 0;
  let retired = 0;
  /** What was done, in order: a checkpoint, or forgetting by these options. */
  const done: unknown[] = [];
  const room = { missingBytes: 0 };
  const newest = { seq: 0 };
  const session = {
    get latestSeq() {
      return newest.seq;
    },
    vmName: 'web1',
    missingBytes: () => Promise.resolve(room.missingBytes),
    checkpoint: () => {
      done.push('checkpoint');
      return checkpoint();
    },
    forget: (_: KeepPolicy, { thinAbove, onlyIfAny, manifestsOnly, until }: ForgetOptions) => {
      if (manifestsOnly === true) {
        retired++;
        return retire();
      }
      asked++;
      done.push({ thinAbove, onlyIfAny });
      return forget(until);
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
    { policy, withDisks: false, keepMisdated: false },
    reporter,
    new ClockWatch(
      () => clock.nowMs,
      () => clock.uptimeMs,
    ),
  );
  const { signal } = new AbortController();
  const due = new AbortController();
  return {
    forgetting,
    done,
    room,
    /** A checkpoint as the watcher takes it, and what follows it. */
    take: async () => {
      await forgetting.checkpoint(session, signal);
      await forgetting.afterCheckpoint(session, signal, due.signal);
    },
    warnings,
    errors,
    clock,
    asked: () => asked,
    retired: () => retired,
    due: () => forgetting.afterCheckpoint(session, new AbortController().signal),
    /** A one-shot command has taken the checkpoint of this number. */
    oneShot: (seq: number) => {
      newest.seq = seq;
      return forgetting.afterOneShot(session, signal);
    },
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
  isSwept: true,
  isCutShort: false,
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

describe('a checkpoint that the policy of a watcher does not keep', () => {
  const gone = { ...NOTHING, removed: [{ id: 'abcd', manifest: null }], isSwept: false };

  it('goes after the checkpoint that it is too old after, and what it leaves when some have come together', async () => {
    let retired = 0;
    const watch = watcher(
      { last: 3 },
      () => Promise.resolve(NOTHING),
      undefined,
      () => Promise.resolve(++retired > 2 ? gone : { ...gone, removed: [] }),
    );
    for (let n = 0; n < 20; n++) await watch.take();
    expect(retired).toBe(18);
    expect(watch.done.filter((what) => what !== 'checkpoint')).toEqual([
      { thinAbove: 0.5, onlyIfAny: undefined },
      { thinAbove: 0.5, onlyIfAny: undefined },
    ]);
  });

  it('stays until the next of those times when it cannot go, which is said once', async () => {
    const damage = new CheckpointError('REPO_DAMAGED', 'a manifest cannot be read');
    const watch = watcher(
      { last: 3 },
      () => Promise.resolve(NOTHING),
      undefined,
      () => Promise.reject(damage),
    );
    for (let n = 0; n < 9; n++) await watch.take();
    expect(watch.errors).toEqual(['REPO_DAMAGED']);
    await watch.take();
    await watch.take();
    expect(watch.errors).toEqual(['REPO_DAMAGED', 'REPO_DAMAGED']);
  });

  it('leaves something to be freed when room is short', async () => {
    const watch = watcher(
      { last: 3 },
      () => Promise.resolve({ ...NOTHING, freedBytes: 500 }),
      undefined,
      () => Promise.resolve(gone),
    );
    await watch.take();
    watch.room.missingBytes = 1000;
    await watch.take();
    await watch.take();
    const every = { thinAbove: undefined, onlyIfAny: false };
    expect(watch.done).toEqual(['checkpoint', every, 'checkpoint', every, 'checkpoint']);
  });
});

describe('what checkpoints that are gone have left', () => {
  const cutShort = { ...NOTHING, isSwept: false, isCutShort: true };

  it('is looked for after each checkpoint when the next one came too early, and in the end whatever comes', async () => {
    const untils: boolean[] = [];
    const watch = watcher({ last: 3 }, (until) => {
      untils.push(until !== undefined);
      return Promise.resolve(until === undefined ? NOTHING : cutShort);
    });
    for (let n = 0; n < 9; n++) await watch.take();
    expect(untils).toEqual([]);
    for (let n = 0; n < 9; n++) await watch.take();
    expect(untils).toEqual([...Array.from({ length: 8 }, () => true), false]);
    for (let n = 0; n < 10; n++) await watch.take();
    expect(untils).toHaveLength(10);
    expect(untils.at(-1)).toBe(true);
  });

  it('is removed after one-shot checkpoints when ten have come together', async () => {
    const watch = watcher({ last: 3 }, () => Promise.resolve(NOTHING));
    for (let seq = 1; seq <= 20; seq++) await watch.oneShot(seq);
    expect(watch.asked()).toBe(2);
    expect(watch.retired()).toBe(18);
  });
});

describe('a watcher whose room is short', () => {
  const REMOVED = [{ id: 'abcd', manifest: null }];
  /** What an earlier watch has left may be there at first. */
  const FIRST = { thinAbove: undefined, onlyIfAny: false };
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
      ...['checkpoint', FIRST, 'checkpoint', THOROUGH, 'checkpoint'],
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
    const watch = watcher({ last: 3 }, () => Promise.resolve({ ...NOTHING, isSwept: false }));
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
