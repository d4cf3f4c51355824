/** A session that forgets checkpoints of its own chain and goes on: with what it keeps in memory, and after failures. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { openSession } from '../../src/checkpoint/open-session.js';
import type { CheckpointSession, SessionOptions } from '../../src/checkpoint/session.js';
import { CheckpointError } from '../../src/errors.js';
import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { CAPTURES } from '../support/captures.js';
import { FakeGuest } from '../support/fake-guest.js';
import { FakeHypervisor, type FakeVm } from '../support/fake-vm.js';
import { readBack, seeded } from '../unit/repository-model.js';

const DISK: VmDisk = {
  id: 'disk0',
  path: '/srv/disk0.qcow2',
  format: 'qcow2',
  writable: true,
  virtualSizeBytes: 1 << 30,
  snapshotModes: ['internal', 'external'],
};
const PAGES = 200;

let runtimeDir = '';
let guest: FakeGuest;
let vm: FakeVm;
let backend: MemoryBackend;
let repository: Repository;
let session: CheckpointSession;
let random: (bound: number) => number;
const memories = new Map<string, Uint8Array>();

beforeEach(async () => {
  runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-session-forget-'));
  guest = new FakeGuest({ disks: [DISK] });
  backend = new MemoryBackend();
  repository = await Repository.init(backend);
  memories.clear();
  random = seeded(5);
});

async function open(tracker: string, more: Pick<SessionOptions, 'regroup'> = {}): Promise<void> {
  session = await openSession(
    new HypervisorRegistry([new FakeHypervisor([guest], (attached) => (vm = attached))]),
    `fake:${guest.identity.name}`,
    {
      repository,
      runtimeDir,
      workers: 1,
      tracker,
      ...more,
    },
  );
}

function fill(): void {
  for (let page = 0; page < PAGES; page++) guest.write(page, noise(), 0);
}

afterEach(async () => {
  await session.close();
  guest.dispose();
  rmSync(runtimeDir, { recursive: true });
});

function noise(): Uint8Array {
  return Uint8Array.from({ length: PAGE_SIZE_BYTES }, () => random(256));
}

/** Little changes, and contents that move to other pages, also to where they were before: deltas and patches. */
function work(): void {
  const before = guest.snapshot();
  for (let n = 0; n < 300; n++) guest.write(random(40), Uint8Array.of(random(256)), random(4096));
  for (let n = 0; n < 2; n++) {
    const from = random(PAGES) * PAGE_SIZE_BYTES + 64;
    guest.write(random(PAGES), before.slice(from, from + PAGE_SIZE_BYTES - 600), 0);
  }
}

async function checkpoint(): Promise<{ readonly id: string; readonly compareReason: string }> {
  work();
  const { checkpointId: id, compareReason } = await session.checkpoint();
  memories.set(id, guest.snapshot());
  return { id, compareReason };
}

/** Those that are there are as they were taken, down to the last page. */
async function mustBeWhole(count: number): Promise<void> {
  const { manifests } = await repository.checkpoints();
  expect(manifests.map(({ id }) => id)).toEqual([...memories.keys()].slice(-count));
  for (const manifest of manifests) {
    const { memory } = await readBack(repository, manifest);
    const expected = memories.get(manifest.id)!;
    expect(Buffer.compare(memory.subarray(0, expected.length), expected)).toBe(0);
  }
  const { problems, orphans } = await verify(repository);
  expect(problems).toEqual([]);
  expect(orphans.filter((key) => !key.includes('/locks/'))).toEqual([]);
}

describe.each(CAPTURES)('a session that forgets, $capture', ({ tracker }) => {
  beforeEach(async () => {
    await open(tracker);
    fill();
  });

  it('trusts its tracker and goes on, again and again, and loses nothing that stays', async () => {
    let thinned = 0;
    for (let round = 0; round < 4; round++) {
      for (let n = 0; n < 8; n++) {
        const { compareReason } = await checkpoint();
        if (round + n > 0) expect(compareReason).toBe('');
      }
      const result = await session.forget({ last: 2 });
      expect(result.removed).toHaveLength(round === 0 ? 6 : 8);
      thinned += result.thinnedPacks;
      await mustBeWhole(2);
    }
    expect(thinned).toBeGreaterThan(2);
  });

  it('removes the disk snapshots where it is told to, and lists them otherwise', async () => {
    for (let n = 0; n < 4; n++) await checkpoint();
    expect(guest.snapshots.size).toBe(4);
    expect((await session.forget({ last: 3 })).disks).toMatchObject([
      { snapshot: { driver: 'internal' }, why: '' },
    ]);
    expect(guest.snapshots.size).toBe(4);
    vm.failNext('dropDiskSnapshots', new CheckpointError('DISK_SNAPSHOT_FAILED', 'not now'));
    const { disks, removed } = await session.forget({ last: 1 }, { withDisks: true });
    expect(removed).toHaveLength(2);
    expect(disks).toMatchObject([{ checkpointId: removed[0]!.id, why: 'not now' }]);
    expect(guest.snapshots.size).toBe(3);
    await mustBeWhole(1);
  });

  it('is good for the next checkpoint after the storage failed it', async () => {
    for (let n = 0; n < 6; n++) await checkpoint();
    const remove = backend.remove.bind(backend);
    let calls = 0;
    backend.remove = async (key, options) => {
      if (++calls === 4) throw new CheckpointError('STORAGE_IO', 'a bad sector');
      await remove(key, options);
    };
    await expect(session.forget({ last: 1 })).rejects.toMatchObject({ code: 'STORAGE_IO' });
    backend.remove = remove;
    expect((await checkpoint()).compareReason).toBe('');
    await session.forget({ last: 2 });
    await mustBeWhole(2);
  });
});

describe.each(CAPTURES)('a session that regroups between its checkpoints, $capture', ({ tracker }) => {
  beforeEach(async () => {
    await open(tracker, { regroup: 'between' });
    fill();
  });

  /** A few pages change in seven checkpoints and are quiet in the eighth, which takes over the segments of all. */
  async function take(count: number): Promise<void> {
    for (let n = 0; n < count; n++) {
      const { latestSeq } = session;
      const first = (latestSeq >>> 3) * 5;
      const isQuiet = latestSeq % 8 === 0;
      for (let page = first; page < first + 5; page++)
        if (!isQuiet) guest.write(page, Uint8Array.of(random(256)), random(4096));
      guest.write(PAGES - 1, Uint8Array.of(latestSeq), 1);
      const { checkpointId } = await session.checkpoint();
      memories.set(checkpointId, guest.snapshot());
    }
  }

  it('brings records together that the next checkpoint takes over, and loses none', async () => {
    const { signal } = new AbortController();
    expect(await session.upkeep(signal)).toBe('');
    for (let n = 0; n < 26; n++) {
      await take(1);
      expect(await session.upkeep(AbortSignal.abort())).toBe('');
      expect(await session.upkeep(signal)).toBe('');
      if (n === 12) await session.forget({ last: 9 });
    }
    const { manifests } = await repository.checkpoints();
    expect(manifests.flatMap(({ regrouped }) => regrouped?.pageCount ?? [])).toEqual([5, 5, 5]);
    // It is closed with records that no checkpoint has taken over.
    while (session.latestSeq % 8 !== 0) await take(1);
    expect(await session.upkeep(signal)).toBe('');
    await session.close();
    await mustBeWhole((await repository.checkpoints()).manifests.length);
  });

  it('says what it met, and goes on without', async () => {
    await take(5);
    await session.close();
    await open(tracker, { regroup: 'between' });
    await take(3);
    const load = backend.load.bind(backend);
    backend.load = () => Promise.reject(new CheckpointError('STORAGE_IO', 'the disk does not answer'));
    expect(await session.upkeep(new AbortController().signal)).toContain('the disk does not answer');
    backend.load = load;
    await take(2);
    await mustBeWhole(10);
  });
});
