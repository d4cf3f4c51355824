/** Storage that hangs, and disk snapshots that outlive the checkpoint that asked for them. The guest is a fake with faults on order. */

import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { SnapshotRecord } from '../../src/disks/begun-snapshots.js';
import { openSession } from '../../src/checkpoint/open-session.js';
import type { CheckpointSession, SessionOptions } from '../../src/checkpoint/session.js';
import { CheckpointError } from '../../src/errors.js';
import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import type { VmDisk } from '../../src/hypervisor/disks.js';
import { Repository } from '../../src/repository/repository.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { CAPTURES, type CaptureUnderTest } from '../support/captures.js';
import { FakeGuest } from '../support/fake-guest.js';
import { FakeHypervisor, type FakeVm } from '../support/fake-vm.js';

const IMAGE: VmDisk = {
  id: 'disk0',
  path: 'rbd:vms/web',
  format: 'raw',
  writable: true,
  virtualSizeBytes: 1 << 30,
  snapshotModes: ['rbd'],
};
/** Of a checkpoint whose process was killed in the pause. */
const KILLED = '0123456789abcdef';

let runtimeDir = '';
let guest: FakeGuest;
let vm: FakeVm;
let repository: Repository;
let session: CheckpointSession;
/** Of the capture under test. */
let { tracker, capture }: CaptureUnderTest = CAPTURES[0]!;

/** The picture is refused with it: the guest would be frozen while all its memory is sent. */
const frozen = (): Partial<SessionOptions> => (capture === 'copying' ? { freezeLimitMs: 1000 } : {});

async function open(options: Partial<SessionOptions> = {}): Promise<void> {
  session = await openSession(
    new HypervisorRegistry([new FakeHypervisor([guest], (attached) => (vm = attached))]),
    `fake:${guest.identity.name}`,
    {
      repository,
      runtimeDir,
      workers: 1,
      tracker,
      ...options,
    },
  );
}

beforeEach(async () => {
  runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-session-'));
  guest = new FakeGuest({ disks: [IMAGE] });
  repository = await Repository.init(new MemoryBackend());
});
afterEach(async () => {
  await session.close();
  rmSync(runtimeDir, { recursive: true });
});

describe.each(CAPTURES)('$capture', (captured) => {
  beforeEach(() => {
    ({ tracker, capture } = captured);
  });

  describe('storage that does not answer before the pause', () => {
    const stalled = new CheckpointError('DISK_STALLED', 'the storage of a disk does not answer');

    it.each([false, true])(
      'fails the checkpoint with nothing paused, frozen or snapshotted (memory only: %j)',
      async (memoryOnly) => {
        await open({ memoryOnly, ...frozen() });
        vm.failNext('checkStorage', stalled);
        await expect(session.checkpoint()).rejects.toMatchObject({ code: 'DISK_STALLED' });
        for (const call of ['pause', 'freeze', 'snapshotDisks'] as const)
          expect(guest.calls).not.toContain(call);
        expect(guest.state).toBe('running');
        await session.checkpoint();
        expect(guest.calls).toContain('pause');
      },
    );

    it('is asked after the hook that comes before the pause, right before the freeze', async () => {
      await open({ hook: 'true', diskMode: 'rbd', ...frozen() });
      await session.checkpoint();
      const order = guest.calls.filter((call) => ['checkStorage', 'freeze', 'pause'].includes(call));
      expect(order).toEqual(['checkStorage', ...(capture === 'copying' ? ['freeze'] : []), 'pause']);
    });
  });

  describe('a snapshot whose checkpoint was killed', () => {
    function leave(
      checkpointId: string,
      repositoryId = repository.id,
      location = repository.backend.properties.location,
    ): Promise<void> {
      guest.snapshots.add(`disk0@${checkpointId}`);
      const plan = [{ driver: 'rbd', disks: [IMAGE] }];
      return new SnapshotRecord(runtimeDir, vm, repositoryId, location).add(checkpointId, plan);
    }

    it('is dropped by the next checkpoint that is committed, and by none that is not', async () => {
      await open();
      await leave(KILLED);
      vm.failNext('saveDeviceState', new CheckpointError('QMP_TIMEOUT', 'no answer'));
      await expect(session.checkpoint()).rejects.toMatchObject({ code: 'QMP_TIMEOUT' });
      expect([...guest.snapshots]).toEqual([`disk0@${KILLED}`]);
      const { checkpointId, warnings } = await session.checkpoint();
      expect([...guest.snapshots]).toEqual([`disk0@${checkpointId}`]);
      expect(warnings).toEqual([]);
      guest.calls.length = 0;
      await session.checkpoint();
      expect(guest.calls).not.toContain('dropDiskSnapshots');
    });

    it('stays, with a warning, when it cannot be dropped, and is tried again', async () => {
      await open();
      await leave(KILLED);
      vm.failNext('dropDiskSnapshots', new CheckpointError('DISK_SNAPSHOT_FAILED', 'not now'));
      const { warnings } = await session.checkpoint();
      expect(warnings).toEqual([expect.stringContaining(`${KILLED} stay: not now`)]);
      await session.checkpoint();
      expect(guest.snapshots.has(`disk0@${KILLED}`)).toBe(false);
    });

    it('stays when its checkpoint was committed after all, or is another repository’s', async () => {
      await open();
      const { checkpointId } = await session.checkpoint();
      await leave(checkpointId);
      await leave(KILLED, 'another');
      // A copy of a repository has its id, and may have the checkpoint.
      const COPIED = 'fedcba9876543210';
      await leave(COPIED, repository.id, 'file:/srv/copy');
      await session.checkpoint();
      expect(guest.snapshots.has(`disk0@${COPIED}`)).toBe(true);
      expect([...guest.snapshots]).toEqual(
        expect.arrayContaining([`disk0@${checkpointId}`, `disk0@${KILLED}`]),
      );
    });

    it('stays when its checkpoint was committed to another chain of the repository', async () => {
      await open({ name: 'first' });
      const { checkpointId } = await session.checkpoint();
      await leave(checkpointId);
      await session.close();
      await open({ name: 'second' });
      await session.checkpoint();
      expect(guest.snapshots.has(`disk0@${checkpointId}`)).toBe(true);
    });

    it('is known by a record from before the pause on', async () => {
      await open();
      let record: readonly string[] = [];
      vm.beforeCall = (method) => {
        if (method === 'pause')
          record = readdirSync(runtimeDir).filter((name) => name.endsWith('.snapshots'));
      };
      await session.checkpoint();
      expect(record).toHaveLength(1);
    });
  });

  describe('a snapshot that is not durable yet', () => {
    it('is made so when the VM runs again', async () => {
      await open();
      await session.checkpoint();
      const order = guest.calls.filter((call) => ['snapshotDisks', 'resume', 'makeDurable'].includes(call));
      expect(order).toEqual(['snapshotDisks', 'resume', 'makeDurable']);
    });

    it('fails the checkpoint, and is dropped, when that fails', async () => {
      await open();
      vm.failNext('makeDurable', new CheckpointError('DISK_SNAPSHOT_FAILED', 'no room'));
      await expect(session.checkpoint()).rejects.toMatchObject({ code: 'DISK_SNAPSHOT_FAILED' });
      expect([...guest.snapshots]).toEqual([]);
      expect(guest.state).toBe('running');
      const { checkpointId } = await session.checkpoint();
      expect([...guest.snapshots]).toEqual([`disk0@${checkpointId}`]);
    });
  });

  describe('a snapshot that failed', () => {
    const refused = (possiblyPresent: readonly string[]): CheckpointError =>
      new CheckpointError('DISK_SNAPSHOT_FAILED', 'refused', {
        detail: { possiblyPresent: [...possiblyPresent] },
      });

    it('is dropped later when it may be there all the same', async () => {
      await open();
      vm.failAfter('snapshotDisks', refused(['cairn-x of rbd:vms/web']));
      await expect(session.checkpoint()).rejects.toMatchObject({ code: 'DISK_SNAPSHOT_FAILED' });
      expect(guest.snapshots.size).toBe(1);
      const { checkpointId } = await session.checkpoint();
      expect([...guest.snapshots]).toEqual([`disk0@${checkpointId}`]);
    });

    it('is left alone when nothing of it can be there: what has its name is somebody else’s', async () => {
      await open();
      vm.failAfter('snapshotDisks', refused([]));
      await expect(session.checkpoint()).rejects.toMatchObject({ code: 'DISK_SNAPSHOT_FAILED' });
      await session.checkpoint();
      expect(guest.snapshots.size).toBe(2);
    });
  });
});
