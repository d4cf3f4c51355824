/** Checkpoints with --freeze: when the guest's file systems are frozen, and that they never stay so. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { openSession } from '../../src/checkpoint/open-session.js';
import type { CheckpointSession, SessionOptions } from '../../src/checkpoint/session.js';
import { CheckpointError } from '../../src/errors.js';
import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import { Repository } from '../../src/repository/repository.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { FakeGuest } from '../support/fake-guest.js';
import { FAKE_PICTURE_TRACKER, FakeHypervisor, type FakeMethod, type FakeVm } from '../support/fake-vm.js';

let runtimeDir = '';
let guest: FakeGuest;
let vm: FakeVm;
let repository: Repository;
let session: CheckpointSession;

async function open(more: Partial<SessionOptions> = {}): Promise<void> {
  session = await openSession(
    new HypervisorRegistry([new FakeHypervisor([guest], (attached) => (vm = attached))]),
    `fake:${guest.identity.name}`,
    {
      repository,
      runtimeDir,
      workers: 1,
      freezeLimitMs: 1000,
      ...more,
    },
  );
}

beforeEach(async () => {
  runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-freeze-'));
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
});
afterEach(async () => {
  await session.close();
  await repository.close();
  guest.dispose();
  rmSync(runtimeDir, { recursive: true });
});

describe('a checkpoint of a guest with frozen file systems', () => {
  it('freezes before the pause and thaws right after it, and says so', async () => {
    await open();
    guest.calls.length = 0;
    const frozenAt: Partial<Record<FakeMethod, boolean>> = {};
    vm.beforeCall = (method) => (frozenAt[method] = guest.isFrozen);
    const summary = await session.checkpoint();
    expect(frozenAt).toMatchObject({
      freeze: false,
      pause: true,
      snapshotDisks: true,
      takeDeviceState: false,
    });
    const order = guest.calls.filter((call) => ['freeze', 'pause', 'resume', 'thaw'].includes(call));
    expect(order).toEqual(['freeze', 'pause', 'resume', 'thaw']);
    expect(summary.frozenMs).toBeGreaterThan(0);
    const manifest = await repository.find('latest');
    expect(manifest.frozen).toEqual({ fileSystemCount: 2 });
    expect(repository.reader(manifest).frozen).toEqual({ fileSystemCount: 2 });
  });

  it.each<FakeMethod>(['collect', 'pause', 'saveDeviceState', 'snapshotDisks', 'takeDeviceState'])(
    'leaves it thawed and running when %s fails',
    async (method) => {
      await open();
      vm.beforeCall = (called) => {
        if (called === 'freeze') vm.failNext(method, new CheckpointError('VM_STATE', 'broken off'));
      };
      await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_STATE' });
      expect(guest).toMatchObject({ isFrozen: false, state: 'running' });
    },
  );

  it('leaves it thawed when the hook fails in the pause', async () => {
    await open({ hook: '[ "$CAIRN_PHASE" != paused ]' });
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'HOOK_FAILED' });
    expect(guest).toMatchObject({ isFrozen: false, state: 'running' });
    expect(guest.snapshots.size).toBe(0);
  });

  it('pauses nothing when it cannot be frozen', async () => {
    await open();
    vm.failNext('freeze', new CheckpointError('GUEST_AGENT', 'no answer'));
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'GUEST_AGENT' });
    expect(guest.calls).not.toContain('pause');
    expect(guest.calls).not.toContain('thaw');
  });

  it('fails as loudly as can be when it cannot be thawed', async () => {
    await open();
    vm.failNext('thaw', new CheckpointError('GUEST_FROZEN', 'no answer'));
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'GUEST_FROZEN' });
    expect(guest.state).toBe('running');
  });

  it('says that it does not run rather than that it is frozen', async () => {
    await open();
    vm.beforeCall = (called) => {
      if (called === 'saveDeviceState') vm.failNext('saveDeviceState', new Error('broken off'));
      if (called === 'resume') vm.failNext('resume', new Error('no answer'));
    };
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_NOT_RESUMED' });
  });

  it('is refused with a tracker under which it would be frozen for the whole transfer', async () => {
    await open({ tracker: FAKE_PICTURE_TRACKER });
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_UNSUPPORTED' });
    expect(guest.calls).not.toContain('freeze');
  });

  it('does nothing of it without --freeze', async () => {
    await open({ freezeLimitMs: undefined });
    expect(await session.checkpoint()).toMatchObject({ frozenMs: 0 });
    expect(guest.calls).not.toContain('freeze');
    expect((await repository.find('latest')).frozen).toBeUndefined();
  });
});
