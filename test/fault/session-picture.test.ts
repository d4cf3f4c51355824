/** A checkpoint whose memory the hypervisor sends: what the engine leaves to it, and what it may rely on. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { openSession } from '../../src/checkpoint/open-session.js';
import type { CheckpointSession } from '../../src/checkpoint/session.js';
import { CheckpointError } from '../../src/errors.js';
import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import { Repository } from '../../src/repository/repository.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { FakeGuest } from '../support/fake-guest.js';
import { FAKE_PICTURE_TRACKER, FakeHypervisor, type FakeMethod, type FakeVm } from '../support/fake-vm.js';

let runtimeDir = '';
let guest: FakeGuest;
let vm: FakeVm;
let repository: Repository;
let session: CheckpointSession;
/** Memory at the moment of the last pause. */
let paused: Uint8Array;

beforeEach(async () => {
  runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-picture-'));
  guest = new FakeGuest({
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
  repository = await Repository.init(new MemoryBackend());
  session = await openSession(
    new HypervisorRegistry([new FakeHypervisor([guest], (attached) => (vm = attached))]),
    `fake:${guest.identity.name}`,
    {
      repository,
      tracker: FAKE_PICTURE_TRACKER,
      runtimeDir,
      workers: 1,
    },
  );
  for (let page = 0; page < 50; page++) write(page);
  // The guest writes before the pause and, more to the point, as soon as it runs again.
  vm.beforeCall = (method) => {
    if (method === 'approach') write(7);
    if (method === 'saveDeviceState') paused = guest.snapshot();
    if (method === 'takeDeviceState') write(9);
  };
});
afterEach(async () => {
  await session.close();
  await repository.close();
  guest.dispose();
  rmSync(runtimeDir, { recursive: true });
});

let written = 0;
function write(page: number): void {
  guest.write(page, Uint8Array.of(++written & 255, 1, 2, written >> 8), 100);
}

async function expectNewestIsThePause(): Promise<void> {
  const differing: number[] = [];
  for await (const { firstPage, pageCount, bytes } of repository
    .reader(await repository.find('latest'))
    .pages()) {
    for (let i = 0; i < pageCount; i++) {
      const at = (firstPage + i) * PAGE_SIZE_BYTES;
      const stored =
        bytes?.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES) ?? new Uint8Array(PAGE_SIZE_BYTES);
      if (Buffer.compare(stored, paused.subarray(at, at + PAGE_SIZE_BYTES)) !== 0)
        differing.push(firstPage + i);
    }
  }
  expect(differing).toEqual([]);
}

describe('a tracker with a picture of memory', () => {
  it('is left the live phase; disks come before the device state, the harvest after the resume', async () => {
    guest.calls.length = 0;
    await session.checkpoint();
    const order: readonly string[] = [
      'approach',
      'pause',
      'snapshotDisks',
      'saveDeviceState',
      'resume',
      'takeDeviceState',
      'collect',
    ];
    expect(guest.calls.slice(guest.calls.indexOf('approach')).filter((call) => order.includes(call))).toEqual(
      order,
    );
  });

  it('gives the memory of the pause, while the guest writes on, in a base and increments', async () => {
    expect(await session.checkpoint()).toMatchObject({ kind: 'base', pausePages: 1 });
    await expectNewestIsThePause();
    for (let i = 0; i < 3; i++) {
      write(20 + i);
      const summary = await session.checkpoint();
      expect(summary).toMatchObject({ kind: 'incremental', compareReason: '' });
      // Pages 7 and 9, and the one of this round.
      expect(summary.dirtyPages).toBe(3);
      await expectNewestIsThePause();
    }
  });

  it.each<FakeMethod>([
    'approach',
    'pause',
    'snapshotDisks',
    'saveDeviceState',
    'takeDeviceState',
    'collect',
  ])('loses nothing when %s fails', async (method) => {
    await session.checkpoint();
    write(30);
    vm.failNext(method, new CheckpointError('TRACKER_FAILED', 'broken off'));
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'TRACKER_FAILED' });
    expect(guest.state).toBe('running');
    expect(guest.snapshots.size).toBe(1);
    await session.checkpoint();
    await expectNewestIsThePause();
  });
});
