/** What the guard of a pause does when its time is over, and how Cairn learns of it. The guard is a process, the VM is not. */

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { GuardKeeper } from '../../adapters/guard/guard-keeper.js';
import { GuardedPause } from '../../adapters/guard/guarded-pause.js';
import {
  isLeftPaused,
  markerOf,
  readPauseMarker,
  setPauseMarker,
} from '../../adapters/guard/pause-marker.js';
import { RunStateControl } from '../../adapters/kvm/run/run-state.js';
import { ownIdentity } from '../../src/host/process-identity.js';
import { descriptorOf } from '../../src/host/socket-descriptor.js';
import type { Json } from '../../src/types.js';
import { FakeMonitor } from '../support/fake-monitor.js';

const GUARD = fileURLToPath(new URL('../support/limited-guard.js', import.meta.url));
const LIMIT_MS = 30;
/** No process has it: above the kernel's limit of process ids. */
const DEAD_PID = 2 ** 30;

let dir: string;
let log: string;
let marker: string;
let frozenMarker: string;
let connection: number | undefined;
let keeper: GuardKeeper;
let guarded: GuardedPause;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-pause-guard-'));
  log = join(dir, 'log');
  marker = join(dir, 'paused.json');
  frozenMarker = join(dir, 'frozen.json');
  writeFileSync(log, '');
  connection = undefined;
  keeper = new GuardKeeper({ modulePath: GUARD, args: [log] }, () =>
    Promise.resolve({
      // This process stands for the VM: it lives.
      process: ownIdentity(),
      markerPath: marker,
      frozenMarkerPath: frozenMarker,
      attachment: 'a',
      connection,
    }),
  );
  guarded = new GuardedPause({ guard: keeper, markerPath: marker, attachment: 'a' });
});
afterEach(async () => {
  await keeper.release();
  rmSync(dir, { recursive: true });
});

const done = (): string => readFileSync(log, 'utf8');

async function until(isSo: () => boolean): Promise<void> {
  while (!isSo()) await sleep(5);
}

describe('a guard', () => {
  it('is one process, also for two that ask for it at once', async () => {
    const [first, second] = await Promise.all([keeper.ready(), keeper.ready()]);
    expect(second).toBe(first);
    expect(await keeper.ready()).toBe(first);
  });
});

describe('a pause that goes on', () => {
  it('is taken away by the guard, which says so in the marker before and after', async () => {
    await guarded.begin(LIMIT_MS);
    expect(guarded.isTaken()).toBe(false);
    await until(() => readPauseMarker(marker)?.takenAway === 'resumed');
    expect(done()).toBe('resumed\n');
    expect(guarded.isTaken()).toBe(true);
    expect(await guarded.awaitGuard()).toBe('resumed');
    await guarded.end();
    expect(existsSync(marker)).toBe(false);
  });

  it('is left alone when it ends in time, however long ago that is', async () => {
    await guarded.begin(LIMIT_MS);
    await guarded.end();
    // The guard takes its words one after the other, so the next pause shows that the first is forgotten.
    await guarded.begin(60_000);
    await sleep(1000);
    expect(guarded.isTaken()).toBe(false);
    expect(done()).toBe('');
    await guarded.end();
  });

  it('has more time when Cairn says so', async () => {
    await guarded.begin(LIMIT_MS);
    await guarded.within(60_000);
    await sleep(1000);
    expect(guarded.isTaken()).toBe(false);
    await guarded.end();
  });

  it('counts from when the VM stands still, where that takes its time', async () => {
    writeFileSync(`${log}.runs`, '');
    await guarded.begin(LIMIT_MS);
    await sleep(1000);
    expect(guarded.isTaken()).toBe(false);
    rmSync(`${log}.runs`);
    await until(() => guarded.isTaken());
    await guarded.awaitGuard();
    await guarded.end();
  });

  it('may be followed by others, which have their own time', async () => {
    for (const expected of ['resumed\n', 'resumed\nresumed\n']) {
      await guarded.begin(LIMIT_MS);
      await until(() => guarded.isTaken());
      expect(await guarded.awaitGuard()).toBe('resumed');
      await guarded.end();
      expect(done()).toBe(expected);
    }
  });

  it("is nobody else's once the guard has resumed the VM: Cairn may die without another resume", async () => {
    await guarded.begin(LIMIT_MS);
    await until(() => readPauseMarker(marker)?.takenAway === 'resumed');
    await keeper.release();
    await until(() => !existsSync(marker));
    expect(done()).toBe('resumed\n');
  });

  it('is thawed, too', async () => {
    const guard = await keeper.ready();
    setPauseMarker(frozenMarker, markerOf('a'));
    await guard.freezing(LIMIT_MS);
    await until(() => readPauseMarker(frozenMarker)?.takenAway === 'resumed');
    expect(done()).toBe('thawed\n');
  });
});

describe('the connection of a Cairn that hangs', () => {
  let server: Server;
  let client: Socket;
  let served: Socket;
  beforeEach(async () => {
    const path = join(dir, 'socket');
    server = createServer();
    const accepted = new Promise<Socket>((resolve) => server.once('connection', resolve));
    await new Promise<void>((resolve) => server.listen(path, resolve));
    client = createConnection(path);
    served = await accepted;
    client.on('error', () => undefined);
  });
  afterEach(async () => {
    client.destroy();
    served.destroy();
    await new Promise((resolve) => server.close(resolve));
  });

  it('is cut before the VM is resumed', async () => {
    connection = descriptorOf(client);
    let doneWhenCut: string | undefined;
    served.resume().once('end', () => (doneWhenCut = done()));
    await guarded.begin(LIMIT_MS);
    await until(() => readPauseMarker(marker)?.takenAway === 'resumed');
    await until(() => doneWhenCut !== undefined);
    expect(done()).toBe('resumed\n');
  });

  it('is let go of, and not cut, when Cairn lets the guard go', async () => {
    connection = descriptorOf(client);
    await guarded.begin(60_000);
    await keeper.release();
    await until(() => !existsSync(marker));
    expect(done()).toBe('resumed\n');
    const heard = new Promise((resolve) => served.once('data', (bytes) => resolve(String(bytes))));
    client.write('still here');
    expect(await heard).toBe('still here');
  });

  it('is kept no longer than it is needed for', async () => {
    const guard = await keeper.ready();
    guard.handOver(descriptorOf(client), 'running');
    await guarded.begin(60_000);
    const closed = new Promise((resolve) => served.resume().once('end', resolve));
    client.destroy();
    await guarded.end();
    await closed;
  });
});

describe('a QEMU whose pause was taken away', () => {
  const qemu = { ...ownIdentity(), program: 'qemu' };
  let monitor: FakeMonitor;
  let control: RunStateControl;
  const path = (): string => join(dir, `paused-${qemu.pid}-${qemu.startTime}.json`);
  let status: string;
  beforeEach(() => {
    status = 'running';
    monitor = new FakeMonitor((command): Json => {
      if (command === 'stop') status = 'paused';
      if (command === 'cont') status = 'running';
      return command === 'query-status' ? { status, running: status === 'running' } : {};
    });
    const guard = { modulePath: GUARD, args: [log] };
    control = new RunStateControl({ monitor, process: qemu, guard, runtimeDir: dir });
  });
  afterEach(() => control.close());

  it('is not resumed a second time by a Cairn that wakes, whose checkpoint fails', async () => {
    await control.pause({ limitMs: LIMIT_MS });
    await until(() => readPauseMarker(path())?.takenAway === 'resumed');
    await expect(control.resume()).rejects.toMatchObject({ code: 'PAUSE_LIMIT', retryable: true });
    expect(monitor.commands).not.toContain('cont');
    expect(existsSync(path())).toBe(false);
    // The next one is another.
    status = 'running';
    await control.pause({ limitMs: 60_000 });
    await control.resume();
    expect(monitor.commands).toContain('cont');
  });

  it('fails the checkpoint also when Cairn hung right before it stopped the VM', async () => {
    const hang = (): void => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1500);
    await expect(control.pause({ limitMs: LIMIT_MS, stopping: hang })).rejects.toMatchObject({
      code: 'PAUSE_LIMIT',
    });
    await expect(control.resume()).rejects.toMatchObject({ code: 'PAUSE_LIMIT' });
  });

  it('is resumed by Cairn itself when the guard has died', async () => {
    await control.pause({ limitMs: LIMIT_MS });
    const guard = await control.guard();
    setPauseMarker(path(), { ...control.owner(), takenAway: 'resuming' });
    await control.releaseGuard();
    await until(() => !guard.isAlive || !existsSync(path()));
    setPauseMarker(path(), { ...control.owner(), takenAway: 'resuming' });
    await expect(control.resume()).rejects.toMatchObject({ code: 'PAUSE_LIMIT' });
    expect(monitor.commands).toContain('cont');
  });

  it('is nothing that the next Cairn would have to see to', async () => {
    const seen = { pid: DEAD_PID, startTime: '1', attachment: 'b', takenAway: 'resumed' } as const;
    setPauseMarker(path(), seen);
    expect(await isLeftPaused(path())).toBe(false);
    expect(existsSync(path())).toBe(false);
    setPauseMarker(path(), { ...seen, takenAway: 'resuming' });
    expect(await isLeftPaused(path())).toBe(true);
  });
});

describe('a rewind', () => {
  const NOTE = { targetId: 'x' };

  it('is left alone by the guard when Cairn dies in it, and by the next Cairn', async () => {
    await guarded.begin(60_000);
    await guarded.beginRewind(NOTE);
    await keeper.release();
    await sleep(500);
    expect(done()).toBe('');
    expect(readPauseMarker(marker)).toMatchObject({ rewind: NOTE });
    setPauseMarker(marker, { ...readPauseMarker(marker)!, pid: DEAD_PID });
    expect(await isLeftPaused(marker)).toBe(false);
    expect(existsSync(marker)).toBe(true);
  });

  it('is not taken away when the limit of the pause has passed', async () => {
    await guarded.begin(1000);
    await guarded.beginRewind(NOTE);
    await sleep(2500);
    expect(guarded.isTaken()).toBe(false);
    expect(done()).toBe('');
    await guarded.end();
  });

  it('does not begin once the guard may have taken the pause away', async () => {
    await guarded.begin(LIMIT_MS);
    await sleep(2 * LIMIT_MS);
    await expect(guarded.beginRewind(NOTE)).rejects.toMatchObject({ code: 'PAUSE_LIMIT' });
    expect(readPauseMarker(marker)?.rewind).toBeUndefined();
    await guarded.awaitGuard();
  });

  it('is a pause again when it is through: a guard that finds Cairn gone resumes the VM', async () => {
    await guarded.begin(60_000);
    await guarded.beginRewind(NOTE);
    await guarded.endRewind(60_000);
    expect(readPauseMarker(marker)?.rewind).toBeUndefined();
    await keeper.release();
    await until(() => done() === 'resumed\n');
  });

  it('that was cut off stays one when the VM, which somebody has resumed, is paused once more', async () => {
    setPauseMarker(marker, { ...markerOf('dead'), pid: DEAD_PID, rewind: NOTE });
    await guarded.begin(60_000);
    expect(readPauseMarker(marker)).toMatchObject({ attachment: 'a', rewind: NOTE });
    await keeper.release();
    await sleep(500);
    expect(done()).toBe('');
  });
});
