/**
 * The pause of a checkpoint ends at its limit and on a signal, whatever it is held up by; a pause that the guard has ended gives no
 * checkpoint; and nothing of the repository is asked for in it.
 */

import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { openSession } from '../../src/checkpoint/open-session.js';
import type { CheckpointSession, SessionOptions } from '../../src/checkpoint/session.js';
import { CheckpointError } from '../../src/errors.js';
import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { CAPTURES } from '../support/captures.js';
import { FakeGuest } from '../support/fake-guest.js';
import { FakeHypervisor, type FakeMethod, type FakeVm } from '../support/fake-vm.js';
import { StillBackend } from '../support/still-backend.js';

const PAGES = 3000;

let runtimeDir = '';
let guest: FakeGuest;
let vm: FakeVm;
let backend: StillBackend;
let repository: Repository;
let session: CheckpointSession;
let written = 0;

async function open(options: Partial<SessionOptions>): Promise<void> {
  guest = new FakeGuest({
    regions: [{ id: 'ram', sizeBytes: PAGES * PAGE_SIZE_BYTES }],
    disks: [
      {
        id: 'disk0',
        path: '/srv/disk0.qcow2',
        format: 'qcow2',
        writable: true,
        virtualSizeBytes: 1 << 30,
        snapshotModes: ['internal'],
      },
    ],
  });
  backend = new StillBackend(() => guest.state === 'paused');
  repository = await Repository.init(backend);
  session = await openSession(
    new HypervisorRegistry([new FakeHypervisor([guest], (attached) => (vm = attached))]),
    `fake:${guest.identity.name}`,
    { repository, runtimeDir, workers: 2, ...options },
  );
  write(0, 100);
}

function write(first: number, count: number): void {
  for (let page = first; page < first + count; page++)
    guest.write(page, Uint8Array.of(++written & 255, 1, 2, written >> 8), 100);
}

/** The guest stands still between checkpoints, so what the newest one holds must be its memory, byte for byte. */
async function expectNewestIsMemory(): Promise<void> {
  const memory = guest.snapshot();
  const differing: number[] = [];
  for await (const { firstPage, pageCount, bytes } of repository
    .reader(await repository.find('latest'))
    .pages()) {
    const at = firstPage * PAGE_SIZE_BYTES;
    const stored = bytes ?? new Uint8Array(pageCount * PAGE_SIZE_BYTES);
    if (Buffer.compare(stored, memory.subarray(at, at + stored.length)) !== 0) differing.push(firstPage);
  }
  expect(differing).toEqual([]);
}

/** After a checkpoint that failed. */
async function expectNothingLost(): Promise<void> {
  expect(guest.state).toBe('running');
  expect(guest.snapshots.size).toBe((await repository.checkpoints()).manifests.length);
  write(40, 3);
  expect(await session.checkpoint()).toMatchObject({ compareReason: '' });
  await expectNewestIsMemory();
  expect((await verify(repository)).problems).toEqual([]);
}

async function untilRunning(): Promise<void> {
  while (guest.calls.at(-1) !== 'resume' || guest.state !== 'running') await sleep(5);
}

beforeEach(() => {
  runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-pause-'));
});
afterEach(async () => {
  await session.close();
  guest.dispose();
  rmSync(runtimeDir, { recursive: true });
});

describe.each(CAPTURES)('the pause of a capture by $capture', ({ tracker }) => {
  it.each<FakeMethod>(['snapshotDisks', 'saveDeviceState'])(
    'ends at its limit while %s hangs, and the checkpoint fails once that has come to an end',
    async (method) => {
      await open({ tracker, pauseLimitMs: 200 });
      await session.checkpoint();
      write(20, 5);
      let goOn = (): void => undefined;
      vm.holdNext(method, new Promise<void>((resolve) => (goOn = resolve)));
      const taking = session.checkpoint();
      taking.catch(() => undefined);
      while (guest.state !== 'paused') await sleep(1);
      await untilRunning();
      // It is still under way: what it leaves must be there to be taken back.
      goOn();
      await expect(taking).rejects.toMatchObject({ code: 'PAUSE_LIMIT', retryable: true });
      await expectNothingLost();
    },
  );

  it('ends at its limit while the hook hangs, which is killed', async () => {
    const started = join(runtimeDir, 'started');
    const ended = join(runtimeDir, 'ended');
    const hook = `[ "$CAIRN_PHASE" != paused ] || [ -e ${started} ] || { echo > ${started}; sleep 600; echo > ${ended}; }`;
    await open({ tracker, pauseLimitMs: 500, hook });
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'PAUSE_LIMIT' });
    expect(existsSync(ended)).toBe(false);
    await expectNothingLost();
  });

  it('leaves the VM running when it was ended before the VM had stopped', async () => {
    const abort = new AbortController();
    await open({ tracker, signal: abort.signal });
    let goOn = (): void => undefined;
    const seen = new Set<FakeMethod>();
    vm.beforeCall = (method) => void seen.add(method);
    vm.holdNext('pause', new Promise<void>((resolve) => (goOn = resolve)));
    const taking = session.checkpoint();
    taking.catch(() => undefined);
    while (!seen.has('checkStorage')) await sleep(1);
    await sleep(300);
    abort.abort(new CheckpointError('INTERRUPTED', 'interrupted by SIGTERM'));
    await sleep(50);
    goOn();
    await expect(taking).rejects.toMatchObject({ code: 'INTERRUPTED' });
    expect(guest.calls).toContain('pause');
    expect(guest.state).toBe('running');
  });

  it('ends on a signal, at once', async () => {
    const abort = new AbortController();
    await open({ tracker, signal: abort.signal, hook: '[ "$CAIRN_PHASE" != paused ] || sleep 600' });
    const taking = session.checkpoint();
    taking.catch(() => undefined);
    while (guest.state !== 'paused') await sleep(1);
    abort.abort(new CheckpointError('INTERRUPTED', 'interrupted by SIGTERM'));
    await expect(taking).rejects.toMatchObject({ code: 'INTERRUPTED' });
    expect(guest.state).toBe('running');
    expect(guest.snapshots.size).toBe(0);
  });

  it('gives no checkpoint when the guard has ended it, and the next one is right', async () => {
    await open({ tracker });
    await session.checkpoint();
    write(20, 5);
    vm.beforeCall = (method) => {
      if (method !== 'resume') return;
      vm.beforeCall = () => undefined;
      // It runs, and writes, before Cairn wakes.
      guest.state = 'running';
      write(30, 5);
      vm.failNext('resume', new CheckpointError('PAUSE_LIMIT', 'the guard has ended it'));
    };
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'PAUSE_LIMIT' });
    expect((await repository.checkpoints()).manifests).toHaveLength(1);
    await expectNothingLost();
  });

  it('asks nothing of the repository, however many pages it copies', async () => {
    await open({ tracker, roomPages: 64, maxPauseMs: 1e9 });
    await session.checkpoint();
    write(0, PAGES);
    await session.checkpoint();
    await expectNewestIsMemory();
    expect(backend.disturbances).toEqual([]);
  });

  it('asks nothing of the repository after live rounds either, which may have left it much to write', async () => {
    await open({ tracker, maxPauseMs: 0.001 });
    for (let i = 0; i < 3; i++) {
      write(0, PAGES);
      await session.checkpoint();
      await expectNewestIsMemory();
    }
    expect(backend.disturbances).toEqual([]);
  });
});

describe('pages that do not fit into the memory for the pause', () => {
  it('fail the checkpoint, without a call of the repository, and nothing is lost', async () => {
    await open({ roomPages: 64 });
    await session.checkpoint();
    let writes = PAGES;
    vm.beforeCall = (method) => {
      // Between the last harvest and the stop.
      if (method === 'pause') write(0, writes);
    };
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'CAPTURE_FULL', retryable: true });
    expect(backend.disturbances).toEqual([]);
    writes = 10;
    await expectNothingLost();
    expect(backend.disturbances).toEqual([]);
  });

  it('have room when they are known before, also without a tracker', async () => {
    await open({ tracker: 'compare', roomPages: 64 });
    write(0, PAGES);
    for (let i = 0; i < 2; i++) {
      await session.checkpoint();
      await expectNewestIsMemory();
      write(0, PAGES);
    }
    expect(backend.disturbances).toEqual([]);
  });
});
