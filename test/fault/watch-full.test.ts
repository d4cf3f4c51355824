/** A watcher whose storage is small: with its policy, checkpoints go on for as long as what the policy keeps has room. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { openSession } from '../../src/checkpoint/open-session.js';
import type { CheckpointSession } from '../../src/checkpoint/session.js';
import type { Reporter } from '../../src/cli/reporter.js';
import { WatchForgetting } from '../../src/cli/watch-forgetting.js';
import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { CAPTURES } from '../support/captures.js';
import { FakeGuest } from '../support/fake-guest.js';
import { FakeHypervisor } from '../support/fake-vm.js';
import { SmallBackend } from '../support/small-backend.js';
import { readBack, seeded } from '../unit/repository-model.js';

/** All of it is written to, and nothing in it can be compressed. */
const PAGES = 400;
/** Rewritten between two checkpoints, 16 at a time. */
const REWRITTEN = 48;
const KEPT = 2;
/** A base, and increments for less than a third of the checkpoints of a test. */
const SIZE_BYTES = PAGES * PAGE_SIZE_BYTES + 12 * REWRITTEN * PAGE_SIZE_BYTES;
const CHECKPOINTS = 40;

let dir = '';
let guest: FakeGuest;
let backend: SmallBackend;
let repository: Repository;
let session: CheckpointSession;
let random: (bound: number) => number;
let warnings: string[];
let errors: string[];

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-watch-full-'));
  guest = new FakeGuest();
  backend = new SmallBackend(SIZE_BYTES);
  repository = await Repository.init(backend);
  random = seeded(7);
  warnings = [];
  errors = [];
});
afterEach(async () => {
  await session.close();
  guest.dispose();
  rmSync(dir, { recursive: true });
});

async function open(tracker: string): Promise<void> {
  session = await openSession(
    new HypervisorRegistry([new FakeHypervisor([guest])]),
    `fake:${guest.identity.name}`,
    { repository, runtimeDir: join(dir, 'run'), workers: 1, tracker },
  );
  for (let page = 0; page < PAGES; page++) guest.write(page, noise());
}

function noise(): Uint8Array {
  const words = Uint32Array.from({ length: PAGE_SIZE_BYTES / 4 }, () => random(2 ** 32));
  return new Uint8Array(words.buffer);
}

function work(): void {
  for (let n = 0; n < REWRITTEN / 16; n++) {
    const from = random(PAGES / 16) * 16;
    for (let page = from; page < from + 16; page++) guest.write(page, noise());
  }
  for (let n = 0; n < 20; n++) guest.write(random(PAGES), Uint8Array.of(random(256)), random(4096));
}

const reporter: Reporter = {
  canAsk: false,
  progress: () => undefined,
  warning: (text) => warnings.push(text),
  summary: () => undefined,
  error: ({ code }) => errors.push(code),
  end: () => undefined,
};

/** @returns how many were taken */
async function watch(forgetting: WatchForgetting): Promise<number> {
  const { signal } = new AbortController();
  const due = new AbortController();
  let taken = 0;
  for (let n = 0; n < CHECKPOINTS; n++) {
    work();
    try {
      await forgetting.checkpoint(session, signal);
      taken++;
    } catch (error) {
      errors.push(String((error as { readonly code?: unknown }).code));
      continue;
    }
    await forgetting.afterCheckpoint(session, signal, due.signal);
  }
  return taken;
}

async function mustBeAsTheGuest(): Promise<void> {
  const { memory } = await readBack(repository, await repository.find('latest'));
  const expected = guest.snapshot();
  expect(Buffer.compare(memory.subarray(0, expected.length), expected)).toBe(0);
  expect((await verify(repository)).problems).toEqual([]);
}

describe.each(CAPTURES)('a watcher on storage that is too small for all, $capture', ({ tracker }) => {
  beforeEach(() => open(tracker));

  it('takes every checkpoint, and meets no lack of room, when its policy keeps what has room', async () => {
    const taken = await watch(
      new WatchForgetting({ policy: { last: KEPT }, withDisks: false, keepMisdated: false }, reporter),
    );
    expect({ taken, errors, warnings }).toEqual({ taken: CHECKPOINTS, errors: [], warnings: [] });
    expect(backend.refusals).toBe(0);
    await mustBeAsTheGuest();
  });

  it('takes what has room without a policy, and keeps it', async () => {
    const taken = await watch(
      new WatchForgetting({ policy: undefined, withDisks: false, keepMisdated: false }, reporter),
    );
    expect(taken).toBeLessThan(CHECKPOINTS / 2);
    expect(new Set(errors)).toEqual(new Set(['STORAGE_FULL']));
    expect((await repository.checkpoints()).manifests).toHaveLength(taken);
    expect((await verify(repository)).problems).toEqual([]);
  });
});
