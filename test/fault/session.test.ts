/** What can go wrong around one checkpoint, and what must hold afterwards. The guest is a fake with faults on order. */

import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
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
import type { CallOptions, ObjectBody, StoredObject } from '../../src/storage/backend.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { FakeGuest, type FakeGuestOptions } from '../support/fake-guest.js';
import { CAPTURE_FAULTS, CAPTURES } from '../support/captures.js';
import { FAKE_TRACKER, FakeHypervisor, type FakeVm } from '../support/fake-vm.js';

const DISK: VmDisk = {
  id: 'disk0',
  path: '/srv/disk0.qcow2',
  format: 'qcow2',
  writable: true,
  virtualSizeBytes: 1 << 30,
  snapshotModes: ['internal', 'external'],
};

/** Stores manifests, loses the answer, and cannot be asked what became of them unless told to. */
class UnsureBackend extends MemoryBackend {
  losesManifestReplies = false;
  canBeAsked = false;

  override async save(key: string, body: ObjectBody, options?: CallOptions): Promise<number> {
    const sizeBytes = await super.save(key, body, options);
    this.#fail(key);
    return sizeBytes;
  }

  override async remove(key: string, options?: CallOptions): Promise<void> {
    this.#fail(key);
    await super.remove(key, options);
  }

  override async confirm(key: string, options?: CallOptions): Promise<StoredObject | undefined> {
    if (!this.canBeAsked) this.#fail(key);
    return super.confirm(key, options);
  }

  #fail(key: string): void {
    if (this.losesManifestReplies && key.includes('/checkpoints/'))
      throw new CheckpointError('STORAGE_IO', 'no answer');
  }
}

let runtimeDir = '';
let guest: FakeGuest;
let vm: FakeVm;
let backend: UnsureBackend;
let repository: Repository;
let session: CheckpointSession;
/** Of the capture under test. */
let tracker = 'auto';

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

async function begin(
  guestOptions: FakeGuestOptions = {},
  options: Partial<SessionOptions> = {},
): Promise<void> {
  guest = new FakeGuest(guestOptions);
  backend = new UnsureBackend();
  repository = await Repository.init(backend);
  await open(options);
  write(1);
}

let written = 0;
function write(page: number): void {
  guest.write(page, Uint8Array.of(++written & 255, 1, 2, written >> 8), 100);
}

/** The guest stands still between checkpoints, so what the newest one holds must be its memory, byte for byte. */
async function expectNewestIsMemory(): Promise<void> {
  const manifest = await repository.find('latest');
  const reader = repository.reader(manifest);
  const memory = guest.snapshot();
  const differing: number[] = [];
  for await (const { firstPage, pageCount, bytes } of reader.pages()) {
    for (let i = 0; i < pageCount; i++) {
      const at = (firstPage + i) * PAGE_SIZE_BYTES;
      const stored =
        bytes?.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES) ?? new Uint8Array(PAGE_SIZE_BYTES);
      if (Buffer.compare(stored, memory.subarray(at, at + PAGE_SIZE_BYTES)) !== 0)
        differing.push(firstPage + i);
    }
  }
  expect(differing).toEqual([]);
}

async function checkpointCount(): Promise<number> {
  return (await repository.checkpoints()).manifests.length;
}

beforeEach(() => {
  runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-session-'));
});
afterEach(async () => {
  tracker = 'auto';
  await session.close();
  guest.dispose();
  rmSync(runtimeDir, { recursive: true });
});

describe('the harvests in the pause', () => {
  beforeEach(() => begin());

  it.each([
    { isLastCollectEnough: false, harvests: 2 },
    { isLastCollectEnough: true, harvests: 1 },
  ])('are $harvests when the last one before it is enough: $isLastCollectEnough', async (expected) => {
    guest.isLastCollectEnough = expected.isLastCollectEnough;
    await session.checkpoint();
    guest.calls.length = 0;
    write(3);
    vm.beforeCall = (method) => {
      // Between the last harvest and the stop, and by the saving of the device state.
      if (method === 'pause') write(4);
      if (method === 'saveDeviceState') guest.writeAsDevice(5, Uint8Array.of(7));
    };
    expect(await session.checkpoint()).toMatchObject({ kind: 'incremental', dirtyPages: 3 });
    const inPause = guest.calls.slice(guest.calls.indexOf('pause'), guest.calls.indexOf('resume'));
    expect(inPause.filter((call) => call === 'collect')).toHaveLength(expected.harvests);
    await expectNewestIsMemory();
  });
});

describe.each(CAPTURES)('the run state, captured by $capture', (captured) => {
  beforeEach(() => {
    tracker = captured.tracker;
    return begin();
  });

  it('is running after a checkpoint of a running VM, paused after one of a paused VM', async () => {
    await session.checkpoint();
    expect(guest.state).toBe('running');
    guest.state = 'paused';
    const { checkpointId, pauseMs } = await session.checkpoint();
    expect(guest.state).toBe('paused');
    expect(pauseMs).toBe(0);
    expect((await repository.find(checkpointId)).runState).toBe('paused');
    await expectNewestIsMemory();
  });

  it('stays as an operator makes it between the look at it and the pause', async () => {
    vm.beforeCall = (method) => {
      if (method === 'pause') guest.state = 'paused';
    };
    const { checkpointId } = await session.checkpoint();
    expect(guest.state).toBe('paused');
    expect((await repository.find(checkpointId)).runState).toBe('paused');
  });

  it('fails the checkpoint when somebody resumes the VM in its pause', async () => {
    vm.beforeCall = (method) => {
      if (method === 'saveDeviceState') guest.state = 'running';
    };
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(guest.state).toBe('running');
    expect(await checkpointCount()).toBe(0);
  });

  it('fails the checkpoint when somebody resumes a VM that was found paused', async () => {
    guest.state = 'paused';
    vm.beforeCall = (method) => {
      if (method === 'saveDeviceState') guest.state = 'running';
    };
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(await checkpointCount()).toBe(0);
  });

  it('is not touched when the VM is neither running nor paused', async () => {
    guest.state = 'other';
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(guest.state).toBe('other');
  });

  it.each(['saveDeviceState', 'collect', 'takeDeviceState'] as const)(
    'is running after %s failed, and the next checkpoint is whole',
    async (method) => {
      await session.checkpoint();
      write(7);
      let armed = false;
      vm.beforeCall = (called) => {
        // Inside the pause, not in the rounds before.
        if (called === 'saveDeviceState') armed = true;
        if (armed && called === method) {
          armed = false;
          vm.failNext(method, new CheckpointError('QMP_TIMEOUT', 'no answer'));
        }
      };
      await expect(session.checkpoint()).rejects.toMatchObject({});
      vm.beforeCall = () => undefined;
      expect(guest.state).toBe('running');
      await session.checkpoint();
      await expectNewestIsMemory();
    },
  );

  it('is running, and the checkpoint stands, when it takes a second request to resume', async () => {
    vm.failNext('resume', new CheckpointError('VM_NOT_RESUMED', 'no answer'));
    await session.checkpoint();
    expect(guest.state).toBe('running');
    await expectNewestIsMemory();
  });

  it('is what the error is about when the VM cannot be resumed at all', async () => {
    vm.beforeCall = (method) => {
      if (method === 'resume') vm.failNext('resume', new CheckpointError('VM_NOT_RESUMED', 'no answer'));
    };
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_NOT_RESUMED' });
    expect(await checkpointCount()).toBe(0);
  });

  it('is what the error is about, in the words of the hypervisor, when neither pause nor resume is answered', async () => {
    vm.failAfter('pause', new CheckpointError('QMP_TIMEOUT', 'no answer to stop'));
    vm.beforeCall = (method) => {
      if (method === 'resume')
        vm.failNext('resume', new CheckpointError('VM_NOT_RESUMED', 'it hangs', { hint: 'wait' }));
    };
    await expect(session.checkpoint()).rejects.toMatchObject({
      code: 'VM_NOT_RESUMED',
      message: expect.stringMatching(/could not be resumed: it hangs$/),
      hint: 'wait',
      cause: expect.objectContaining({ code: 'QMP_TIMEOUT' }),
    });
  });

  it('is running after a failed checkpoint when it takes a second request to resume', async () => {
    vm.failNext('saveDeviceState', new CheckpointError('QMP_TIMEOUT', 'no answer'));
    vm.failNext('resume', new CheckpointError('VM_NOT_RESUMED', 'no answer'));
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'QMP_TIMEOUT' });
    expect(guest.state).toBe('running');
  });

  it('is running when the device state fails at once, before anybody waits for it', () => {
    // A process of its own: an error that nobody has picked up ends a process, but not a test run.
    const url = (path: string): string => JSON.stringify(new URL(path, import.meta.url).href);
    const script = `
      import { openSession } from ${url('../../src/checkpoint/open-session.js')};
      import { HypervisorRegistry } from ${url('../../src/hypervisor/registry.js')};
      import { Repository } from ${url('../../src/repository/repository.js')};
      import { MemoryBackend } from ${url('../../src/storage/memory.js')};
      import { FakeGuest } from ${url('../support/fake-guest.js')};
      import { FakeHypervisor } from ${url('../support/fake-vm.js')};
      const guest = new FakeGuest();
      guest.write(1, Uint8Array.of(1));
      const session = await openSession(new HypervisorRegistry([new FakeHypervisor([guest])]), 'fake:' + guest.identity.name, {
        repository: await Repository.init(new MemoryBackend()),
        runtimeDir: ${JSON.stringify(runtimeDir)},
        workers: 1,
        tracker: ${JSON.stringify(tracker)},
      });
      session.vm.deviceState.save = () => Promise.reject(new Error('no device state'));
      const failure = await session.checkpoint().catch((error) => error.message);
      console.log(failure, guest.state);
      await session.close();
      guest.dispose();`;
    const { stdout, status } = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
      encoding: 'utf8',
      env: { ...process.env, NODE_OPTIONS: '' },
    });
    expect({ stdout, status }).toEqual({ stdout: 'no device state running\n', status: 0 });
  });

  it('is running after the reply to the request to stop was lost', async () => {
    vm.failAfter('pause', new CheckpointError('QMP_TIMEOUT', 'no answer'));
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'QMP_TIMEOUT' });
    expect(guest.state).toBe('running');
  });
});

describe.each(CAPTURES)('the commit, captured by $capture', (captured) => {
  beforeEach(() => {
    tracker = captured.tracker;
    return begin();
  });

  it('stands when the ledger cannot be written after it', async () => {
    vm.beforeCall = (method) => {
      // Of all moments after the first write of the ledger this is one that the fake can see.
      if (method === 'takeDeviceState') {
        rmSync(runtimeDir, { recursive: true });
      }
    };
    const summary = await session.checkpoint();
    expect(summary.warnings.join()).toContain('ledger');
    expect(await checkpointCount()).toBe(1);
    await expectNewestIsMemory();
    vm.beforeCall = () => undefined;
    runtimeDir = mkdtempSync(join(tmpdir(), 'cairn-session-'));
  });

  it('ends the time of the checkpoint: what a hook does afterwards is not part of it', async () => {
    await session.close();
    await open({ hook: '[ "$CAIRN_PHASE" != committed ] || sleep 1' });
    const startedMs = performance.now();
    const { totalMs } = await session.checkpoint();
    expect(performance.now() - startedMs - totalMs).toBeGreaterThan(900);
  });

  it('keeps the disk snapshots of a checkpoint whose manifest may be there', async () => {
    await session.close();
    guest.dispose();
    await begin({ disks: [DISK] });
    backend.losesManifestReplies = true;
    const uncertain = { code: 'CHECKPOINT_UNCERTAIN', hint: expect.stringContaining('cairn list') };
    await expect(session.checkpoint()).rejects.toMatchObject(uncertain);
    expect(guest.snapshots.size).toBe(1);
  });

  it('is a success when only the answer to its manifest was lost', async () => {
    backend.losesManifestReplies = true;
    backend.canBeAsked = true;
    const { checkpointId } = await session.checkpoint();
    expect((await repository.find('latest')).id).toBe(checkpointId);
    write(2);
    expect((await session.checkpoint()).compareReason).toBe('');
    await expectNewestIsMemory();
  });

  it('tells a hook when it may be there, so that what the hook took stays', async () => {
    await session.close();
    const log = join(runtimeDir, 'phases');
    await open({ hook: `echo $CAIRN_PHASE >>${log}` });
    backend.losesManifestReplies = true;
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'CHECKPOINT_UNCERTAIN' });
    expect(readFileSync(log, 'utf8').trim().split('\n').at(-1)).toBe('uncertain');
    backend.losesManifestReplies = false;
    vm.failNext('takeDeviceState', new CheckpointError('VM_STATE', 'lost'));
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(readFileSync(log, 'utf8').trim().split('\n').at(-1)).toBe('failed');
  });

  it('may be there and is kept by a policy, and so is the older one that the session goes on from', async () => {
    await session.checkpoint();
    write(2);
    backend.losesManifestReplies = true;
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'CHECKPOINT_UNCERTAIN' });
    backend.losesManifestReplies = false;
    expect(await checkpointCount()).toBe(2);
    expect((await session.forget({ last: 1 })).kept).toHaveLength(2);
    write(3);
    await session.checkpoint();
    await expectNewestIsMemory();
    expect((await verify(repository)).problems).toEqual([]);
  });

  it('drops the disk snapshots of a checkpoint that is certainly not there', async () => {
    await session.close();
    guest.dispose();
    await begin({ disks: [DISK] });
    vm.failNext('takeDeviceState', new CheckpointError('VM_STATE', 'lost'));
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_STATE' });
    expect(guest.snapshots.size).toBe(0);
  });
});

describe.each(CAPTURES)('a VM that changes on the way, captured by $capture', (captured) => {
  beforeEach(() => {
    tracker = captured.tracker;
    return begin();
  });

  it('is followed after hotplug between checkpoints', async () => {
    await session.checkpoint();
    guest.setRegions([
      { id: 'ram', sizeBytes: 1000 * PAGE_SIZE_BYTES },
      { id: 'rom', sizeBytes: 3 * PAGE_SIZE_BYTES },
      { id: 'dimm', sizeBytes: 64 * PAGE_SIZE_BYTES },
    ]);
    write(1100);
    await session.checkpoint();
    await expectNewestIsMemory();
    write(3);
    expect((await session.checkpoint()).compareReason).toBe('');
    await expectNewestIsMemory();
  });

  it('is followed when its regions change places and take as much room as before', async () => {
    await session.checkpoint();
    guest.setRegions([
      { id: 'rom', sizeBytes: 3 * PAGE_SIZE_BYTES },
      { id: 'ram', sizeBytes: 1000 * PAGE_SIZE_BYTES },
    ]);
    write(70);
    await session.checkpoint();
    await expectNewestIsMemory();
    expect((await verify(repository)).problems).toEqual([]);
  });

  it('is read where it is when the same regions have moved', async () => {
    await session.checkpoint();
    guest.move();
    write(5);
    await session.checkpoint();
    await expectNewestIsMemory();
  });

  it('is followed with the tracker that was insisted on', async () => {
    await session.close();
    await open({ tracker: 'compare' });
    await session.checkpoint();
    guest.setRegions([{ id: 'ram', sizeBytes: 2000 * PAGE_SIZE_BYTES }]);
    await session.checkpoint();
    expect(session.trackerKind).toBe('compare');
    await expectNewestIsMemory();
  });

  it('can be tried again when its tracker does not start after a change that is then taken back', async () => {
    await session.checkpoint();
    const regions = guest.layout.regions.map(({ id, sizeBytes }) => ({ id, sizeBytes }));
    guest.setRegions([{ id: 'ram', sizeBytes: 2000 * PAGE_SIZE_BYTES }]);
    vm.failNext('start', new CheckpointError('TRACKER_UNAVAILABLE', 'not now'));
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'TRACKER_UNAVAILABLE' });
    guest.setRegions(regions);
    write(8);
    await session.checkpoint();
    await expectNewestIsMemory();
  });

  it('fails the checkpoint in which it happens, and is whole in the next', async () => {
    await session.checkpoint();
    vm.beforeCall = (method) => {
      if (method !== 'resume') return;
      vm.beforeCall = () => undefined;
      guest.setRegions([{ id: 'ram', sizeBytes: 2000 * PAGE_SIZE_BYTES }]);
    };
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_STATE', retryable: true });
    expect(await checkpointCount()).toBe(1);
    await session.checkpoint();
    await expectNewestIsMemory();
  });

  it('is refused once a device appears with which no checkpoint is right', async () => {
    guest.hazards.push({ code: 'VFIO_DEVICE', text: 'a passed-through device', effect: 'refuse' });
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_STATE' });
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_UNSUPPORTED' });
    expect(guest.state).toBe('running');
  });

  it('is left alone when its state cannot be had, and goes on from the same record afterwards', async () => {
    await session.checkpoint();
    write(7);
    const before = guest.calls.length;
    vm.failNext('checkDeviceState', new CheckpointError('VM_UNSUPPORTED', 'an NVMe disk'));
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_UNSUPPORTED' });
    const calls = guest.calls.slice(before);
    for (const method of ['beginCheckpoint', 'collect', 'pause', 'saveDeviceState']) {
      expect(calls).not.toContain(method);
    }
    expect((await session.checkpoint()).compareReason).toBe('');
    await expectNewestIsMemory();
  });

  it('is compared after its tracker was disarmed by somebody else', async () => {
    await session.checkpoint();
    write(9);
    guest.loseTracker();
    await expect(session.checkpoint()).rejects.toMatchObject({ code: 'TRACKER_OFF' });
    const { compareReason } = await session.checkpoint();
    expect(compareReason).not.toBe('');
    await expectNewestIsMemory();
  });
});

describe('a VM whose tracker was chosen by itself', () => {
  beforeEach(() => begin());

  it('is compared once a device appears through which writes escape', async () => {
    await session.checkpoint();
    expect(session.trackerKind).toBe(FAKE_TRACKER);
    guest.hazards.push({ code: 'VHOST_USER', text: 'a device writes behind it', effect: 'compare' });
    await expect(session.checkpoint()).rejects.toMatchObject({ detail: { hazard: 'VHOST_USER' } });
    await session.checkpoint();
    expect(session.trackerKind).toBe('compare');
    await expectNewestIsMemory();
  });
});

describe.each(CAPTURES)('a record that turns out to be lost, captured by $capture', (captured) => {
  beforeEach(() => {
    tracker = captured.tracker;
  });
  it.each([1, 2, 3])('is not trusted, at whichever question that is (number %d)', async (asks) => {
    await begin();
    await session.checkpoint();
    write(9);
    guest.asksUntilRecordIsLost = asks;
    const { compareReason } = await session.checkpoint();
    expect(compareReason !== '').toBe(guest.asksUntilRecordIsLost <= 0);
    await expectNewestIsMemory();
  });
});

describe.each(CAPTURES)(
  'bits that were harvested for a checkpoint that failed, captured by $capture',
  (captured) => {
    beforeEach(async () => {
      tracker = captured.tracker;
      await begin();
      await session.checkpoint();
      write(11);
    });

    it('count for the next one, which reads no more than it must', async () => {
      vm.failNext('takeDeviceState', new CheckpointError('VM_STATE', 'lost'));
      await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_STATE' });
      expect((await session.checkpoint()).compareReason).toBe('');
      await expectNewestIsMemory();
    });

    it('make the next one compare when the tracker does not take them back', async () => {
      vm.failNext('takeDeviceState', new CheckpointError('VM_STATE', 'lost'));
      vm.failNext('putBack', new Error('no room'));
      await expect(session.checkpoint()).rejects.toMatchObject({ code: 'VM_STATE' });
      expect((await session.checkpoint()).compareReason).not.toBe('');
      await expectNewestIsMemory();
    });

    it('make the next one compare when a new tracker goes on with the same record', async () => {
      vm.beforeCall = (method) => {
        if (method === 'saveDeviceState')
          vm.failNext('collect', new CheckpointError('TRACKER_OFF', 'lost it'));
      };
      await expect(session.checkpoint()).rejects.toMatchObject({ code: 'TRACKER_OFF' });
      vm.beforeCall = () => undefined;
      expect((await session.checkpoint()).compareReason).not.toBe('');
      await expectNewestIsMemory();
    });
  },
);

describe('a failure on the way to the manifest', () => {
  it.each(CAPTURE_FAULTS)(
    'of $method, captured by $capture, costs nothing but the checkpoint',
    async (fault) => {
      const { capture, method } = fault;
      tracker = fault.tracker;
      await begin({ disks: [DISK] }, capture === 'copying' ? { freezeLimitMs: 1000 } : {});
      await session.checkpoint();
      write(30);
      vm.failNext(method, new CheckpointError('TRACKER_FAILED', 'broken off'));
      await expect(session.checkpoint()).rejects.toMatchObject({ code: 'TRACKER_FAILED' });
      expect(guest.state).toBe('running');
      expect(guest.snapshots.size).toBe(1);
      await session.checkpoint();
      await expectNewestIsMemory();
      expect((await verify(repository)).problems).toEqual([]);
    },
  );
});

describe('a session', () => {
  it('is the only one for a VM, whatever its runtime folder', async () => {
    await begin();
    const first = session;
    const elsewhere = mkdtempSync(join(tmpdir(), 'cairn-session-'));
    const firstVm = vm;
    await expect(open({ runtimeDir: elsewhere })).rejects.toMatchObject({ code: 'VM_LOCKED' });
    rmSync(elsewhere, { recursive: true });
    session = first;
    vm = firstVm;
  });

  it('lets go of everything although one step of it fails', async () => {
    await begin();
    vm.close = () => Promise.reject(new Error('cannot close'));
    await session.close();
    await open();
  });
});
