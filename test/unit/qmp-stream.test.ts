import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import type { Monitor, QmpEvent } from '../../adapters/qemu/monitor.js';
import { Migration } from '../../adapters/kvm/trackers/qmp-stream/migration.js';
import { allocateShared, viewsOf } from '../../adapters/kvm/trackers/qmp-stream/receiver-messages.js';
import { receiveStream } from '../../adapters/kvm/trackers/qmp-stream/receive.js';
import { planSettings } from '../../adapters/kvm/trackers/qmp-stream/settings.js';
import { openGuestReader } from '../../adapters/kvm/trackers/qmp-stream/staging-reader.js';
import { hasBit, StagingWriter } from '../../adapters/kvm/trackers/qmp-stream/staging-writer.js';
import { losesWrites, qmpStreamReport } from '../../adapters/kvm/trackers/qmp-stream/support.js';
import { writeMigrationStream } from '../../adapters/qemu/stream/writer.js';
import { decideTracker } from '../../src/checkpoint/trust/tracker-choice.js';
import { CheckpointError } from '../../src/errors.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import type { Json, JsonObject } from '../../src/types.js';

const PAGE = 4096;
const SPAN = 256;

/** A page filled with one byte. */
function page(byte: number): Buffer {
  return Buffer.alloc(PAGE, byte);
}

class FakeMonitor implements Monitor {
  readonly commands: { command: string; args: JsonObject | undefined }[] = [];
  readonly #replies: Readonly<Record<string, Json>>;
  #listener: ((event: QmpEvent) => void) | undefined;

  constructor(replies: Readonly<Record<string, Json>>) {
    this.#replies = replies;
  }

  execute(command: string, args?: JsonObject): Promise<Json> {
    this.commands.push({ command, args });
    return Promise.resolve(this.#replies[command] ?? {});
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listener = listener;
    return () => (this.#listener = undefined);
  }

  send(event: string, data: JsonObject = {}): void {
    this.#listener?.({ event, data });
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** As of libvirt's monitor. */
function withoutEvents(): never {
  throw new CheckpointError('VM_UNSUPPORTED', 'no events');
}

let dir: string;
let staging: number;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-staging-'));
  staging = openSync(join(dir, 'staging'), 'wx+');
  ftruncateSync(staging, SPAN * PAGE);
});
afterEach(() => {
  closeSync(staging);
  rmSync(dir, { recursive: true });
});

describe('the staging file', () => {
  function fresh(): { bits: ReturnType<typeof viewsOf>; writer: () => StagingWriter } {
    const bits = viewsOf(allocateShared(SPAN), SPAN);
    return { bits, writer: () => new StagingWriter(staging, bits) };
  }

  function dirtyPages(dirty: Uint32Array): readonly number[] {
    return Array.from({ length: SPAN }, (_, i) => i).filter((i) => hasBit(dirty, i));
  }

  function contentOf(index: number): number {
    const bytes = Buffer.alloc(PAGE);
    readSync(staging, bytes, 0, PAGE, index * PAGE);
    expect(bytes.every((byte) => byte === bytes[0])).toBe(true);
    return bytes[0]!;
  }

  it('takes what arrives, and reports only what differs from before', () => {
    const { bits, writer } = fresh();
    const first = writer();
    for (let i = 0; i < 100; i++) first.put(i, page(i + 1));
    first.put(200, null);
    first.flush();
    expect(dirtyPages(bits.dirty)).toEqual(Array.from({ length: 100 }, (_, i) => i));
    bits.dirty.fill(0);

    const second = writer();
    for (let i = 0; i < 100; i++) second.put(i, page(i === 7 || i === 65 ? 200 : i + 1));
    second.flush();
    expect(dirtyPages(bits.dirty)).toEqual([7, 65]);
    expect([contentOf(7), contentOf(8), contentOf(65)]).toEqual([200, 9, 200]);
  });

  it('lets the last record of a page win, whatever came before it', () => {
    const { bits, writer } = fresh();
    const one = writer();
    one.put(3, page(1));
    one.put(3, null);
    one.put(4, null);
    one.put(4, page(2));
    one.put(5, page(1));
    one.put(5, page(3));
    one.flush();
    expect([contentOf(3), contentOf(4), contentOf(5)]).toEqual([0, 2, 3]);
    expect([hasBit(bits.filled, 3), hasBit(bits.filled, 4)]).toEqual([false, true]);
  });

  it('reports a page that became zero', () => {
    const { bits, writer } = fresh();
    const first = writer();
    first.put(10, page(1));
    first.put(11, page(1));
    first.flush();
    bits.dirty.fill(0);
    const second = writer();
    second.put(10, null);
    second.put(11, null);
    second.put(12, null);
    second.flush();
    expect(dirtyPages(bits.dirty)).toEqual([10, 11]);
    expect(contentOf(10)).toBe(0);
  });

  it('does not take what a broken stream left behind for what the page held', () => {
    const { bits, writer } = fresh();
    const first = writer();
    first.put(1, page(1));
    first.put(2, page(2));
    first.flush();
    // Cut off before the hole is made: the file still holds 1, the harvest says zero.
    writer().put(1, null);
    bits.dirty.fill(0);
    const second = writer();
    second.put(1, page(1));
    second.put(2, page(2));
    second.flush();
    expect(dirtyPages(bits.dirty)).toEqual([1]);
  });

  it('is read by the workers in runs', () => {
    const { writer } = fresh();
    const one = writer();
    for (let i = 0; i < 8; i++) one.put(i, page(i + 1));
    one.flush();
    const into = new Uint8Array(3 * PAGE);
    openGuestReader({ descriptor: staging }).readRuns(Uint32Array.of(1, 2, 6, 1), into);
    expect([into[0], into[PAGE], into[2 * PAGE]]).toEqual([2, 3, 7]);
    expect(() => openGuestReader({ descriptor: staging }).readRuns(Uint32Array.of(0, 4), into)).toThrow(
      RangeError,
    );
  });
});

describe('one stream', () => {
  const layout = layOut([
    { id: 'pc.ram', sizeBytes: 70 * PAGE },
    { id: 'vga.vram', sizeBytes: 3 * PAGE },
  ]);

  // eslint-disable-next-line @typescript-eslint/require-await -- a source of pages is asynchronous
  async function* pages(): AsyncGenerator<{
    firstPage: number;
    pageCount: number;
    bytes: Uint8Array | null;
  }> {
    yield { firstPage: 0, pageCount: 2, bytes: Buffer.concat([page(1), page(2)]) };
    yield { firstPage: 2, pageCount: 68, bytes: null };
    yield { firstPage: 128, pageCount: 3, bytes: Buffer.concat([page(7), page(8), page(9)]) };
  }

  function stream(): AsyncIterable<Uint8Array> {
    const device = Buffer.concat([
      Buffer.from([4, 0, 0, 0, 9, 3]),
      Buffer.from('dev', 'latin1'),
      Buffer.from([0, 0, 0, 0, 0, 0, 0, 1, 42, 0x7e, 0, 0, 0, 9]),
    ]);
    return writeMigrationStream({ machineType: 'pc-i440fx-7.2', layout, deviceSections: device, pages });
  }

  const setup = (allowMissing = false) => ({
    staging,
    layout,
    shared: allocateShared(layout.pageSpan),
    allowMissing,
  });

  it('fills the staging file and hands over the device sections', async () => {
    const to = setup();
    const received = await receiveStream(stream(), to);
    expect(received).toMatchObject({ machineType: 'pc-i440fx-7.2', missingPages: 0 });
    expect(received.deviceBytes[17]).toBe(42);
    const views = viewsOf(to.shared, layout.pageSpan);
    expect([0, 1, 2, 128, 130].map((index) => hasBit(views.filled, index))).toEqual([
      true,
      true,
      false,
      true,
      true,
    ]);
    expect(views.counters[0]).toBe(73);
  });

  it('is refused when its memory is not that of the layout', async () => {
    const other = layOut([{ id: 'pc.ram', sizeBytes: 70 * PAGE }]);
    await expect(receiveStream(stream(), { ...setup(), layout: other })).rejects.toMatchObject({
      code: 'VM_UNSUPPORTED',
      retryable: true,
    });
  });

  it('is refused when it breaks off', async () => {
    async function* cut(): AsyncGenerator<Uint8Array> {
      let left = 5000;
      for await (const bytes of stream()) {
        yield bytes.subarray(0, left);
        left -= bytes.length;
        if (left <= 0) return;
      }
    }
    await expect(receiveStream(cut(), setup())).rejects.toMatchObject({ code: 'STREAM_MALFORMED' });
  });
});

describe('the migration settings of the operator', () => {
  const monitor = new FakeMonitor({
    'query-migrate-capabilities': [
      { capability: 'xbzrle', state: true },
      { capability: 'multifd', state: false },
      { capability: 'events', state: false },
      { capability: 'pause-before-switchover', state: true },
    ],
    'query-migrate-parameters': {
      'max-bandwidth': 1000,
      'downtime-limit': 300,
      'tls-creds': 'tls0',
      mode: 'cpr-reboot',
      'zero-page-detection': 'none',
    },
  });

  it('are changed only where they must be, and come back exactly', async () => {
    const { apply, putBack } = await planSettings(monitor);
    expect(apply.capabilities).toEqual([
      { capability: 'xbzrle', state: false },
      { capability: 'events', state: true },
    ]);
    expect(putBack.capabilities).toEqual([
      { capability: 'xbzrle', state: true },
      { capability: 'events', state: false },
    ]);
    expect(apply.parameters).toMatchObject({
      'tls-creds': '',
      mode: 'normal',
      'zero-page-detection': 'legacy',
    });
    expect(putBack.parameters).toEqual({
      'max-bandwidth': 1000,
      'downtime-limit': 300,
      'tls-creds': 'tls0',
      mode: 'cpr-reboot',
      'zero-page-detection': 'none',
    });
    expect(Object.keys(apply.parameters)).toEqual(Object.keys(putBack.parameters));
  });
});

describe('a migration under way', () => {
  it('is followed to its end by events', async () => {
    const monitor = new FakeMonitor({});
    const migration = await Migration.start(monitor, 0);
    monitor.send('MIGRATION', { status: 'active' });
    monitor.send('MIGRATION_PASS', { pass: 3 });
    expect(migration.passes).toBe(3);
    expect(migration.stoppedAt).toBeUndefined();
    monitor.send('STOP');
    expect(migration.stoppedAt).toBeGreaterThan(0);
    const switchover = migration.reachSwitchover();
    monitor.send('MIGRATION', { status: 'pre-switchover' });
    await switchover;
    const complete = migration.complete();
    monitor.send('MIGRATION', { status: 'device' });
    monitor.send('MIGRATION', { status: 'completed' });
    await complete;
    expect(migration.isCompleted).toBe(true);
    expect(monitor.commands.map(({ command }) => command)).toEqual(['getfd', 'migrate', 'migrate-continue']);
  });

  it.each([
    ['cancelled', 'was cancelled'],
    ['failed', 'failed: no space'],
  ])('reports that it %s', async (status, text) => {
    const monitor = new FakeMonitor({
      'query-migrate': status === 'failed' ? { 'error-desc': 'no space' } : {},
    });
    const migration = await Migration.start(monitor, 0);
    const news = migration.news();
    monitor.send('MIGRATION', { status });
    await expect(news).rejects.toMatchObject({
      code: 'TRACKER_FAILED',
      retryable: true,
      message: expect.stringContaining(text) as unknown,
    });
  });

  it('is followed by asking where no events come', async () => {
    const ram = (pass: number): JsonObject => ({ 'dirty-sync-count': pass, remaining: 0, transferred: 1 });
    const states: JsonObject[] = [
      { status: 'active', ram: ram(1) },
      { status: 'active', ram: ram(3) },
      { status: 'pre-switchover', ram: ram(4) },
      { status: 'device', ram: ram(4) },
      { status: 'completed', ram: ram(4) },
    ];
    const monitor = new FakeMonitor({});
    monitor.onEvent = withoutEvents;
    monitor.execute = (command) => Promise.resolve(command === 'query-migrate' ? states.shift()! : {});
    const before = performance.now();
    const migration = await Migration.start(monitor, 0);
    await migration.news();
    expect([migration.passes, migration.stoppedAt]).toEqual([1, undefined]);
    await migration.news();
    const stillRan = performance.now();
    expect([migration.passes, migration.stoppedAt]).toEqual([3, undefined]);
    await migration.reachSwitchover();
    // No later than the last moment at which it is known to have run.
    expect(migration.stoppedAt).toBeGreaterThanOrEqual(before);
    expect(migration.stoppedAt).toBeLessThanOrEqual(stillRan);
    await migration.complete();
    expect([migration.isCompleted, states]).toEqual([true, []]);
    migration.close();
  });

  it('that fails is noticed by asking, too', async () => {
    const monitor = new FakeMonitor({ 'query-migrate': { status: 'failed', 'error-desc': 'no space' } });
    monitor.onEvent = withoutEvents;
    const migration = await Migration.start(monitor, 0);
    await expect(migration.reachSwitchover()).rejects.toMatchObject({
      code: 'TRACKER_FAILED',
      message: expect.stringContaining('no space') as unknown,
    });
  });

  it('leaves no descriptor behind in a monitor that stays open when QEMU refuses it', async () => {
    const monitor = new FakeMonitor({});
    const execute = monitor.execute.bind(monitor);
    monitor.execute = (command, args) =>
      command === 'migrate' ? Promise.reject(new Error('blocked')) : execute(command, args);
    await expect(Migration.start(monitor, 0)).rejects.toThrow('blocked');
    expect(monitor.commands.map(({ command }) => command)).toEqual(['getfd', 'closefd']);
  });

  it('is given up when the signal says so', async () => {
    const monitor = new FakeMonitor({});
    const migration = await Migration.start(monitor, 0);
    const stop = new AbortController();
    const news = migration.news(stop.signal);
    stop.abort(new Error('enough'));
    await expect(news).rejects.toThrow('enough');
  });
});

describe('whether a VM can be streamed', () => {
  const SEEN = { seesSharers: true };

  it('is no when QEMU does not migrate it', async () => {
    const report = await qmpStreamReport(
      new FakeMonitor({ 'query-migrate': { 'blocked-reasons': ['0000:01:00.0: VFIO'] } }),
      { memoryBytes: 1 << 20, ...SEEN },
    );
    expect(report).toMatchObject({ usable: false, reason: expect.stringContaining('VFIO') as unknown });
  });

  it('is no when somebody unseen may write to its memory', async () => {
    const monitor = new FakeMonitor({
      'qom-list': [
        { name: 'type', type: 'string' },
        { name: 'mem', type: 'child<memory-backend-file>' },
      ],
      'query-memdev': [{ id: 'mem', share: true }],
    });
    const facts = { ...SEEN, memoryBytes: 1 << 20, seesSharers: false };
    expect(await qmpStreamReport(monitor, facts)).toMatchObject({
      usable: false,
      reason: expect.stringContaining('(mem)') as unknown,
    });
    // Who can look has it among the hazards of the VM.
    expect(await qmpStreamReport(monitor, { ...facts, seesSharers: true })).toMatchObject({ usable: true });
  });

  it('is no when the copy of its memory finds no room', async () => {
    const report = await qmpStreamReport(new FakeMonitor({}), { memoryBytes: 2 ** 50, ...SEEN });
    expect(report).toMatchObject({
      usable: false,
      remedy: expect.stringContaining('CAIRN_STREAM_DIR') as unknown,
    });
  });

  it.each([
    [false, 7, true],
    [true, 7, false],
    [false, 10, false],
  ])('depends on who logs writes: KVM %s, QEMU %i: stopped first %s', async (enabled, major, stops) => {
    const monitor = new FakeMonitor({
      'query-kvm': { enabled, present: true },
      'query-version': { qemu: { major, minor: 0, micro: 0 } },
    });
    expect(await losesWrites(monitor)).toBe(stops);
    expect(
      (await qmpStreamReport(monitor, { memoryBytes: 1 << 20, ...SEEN })).reason.includes('stopped'),
    ).toBe(stops);
  });
});

describe('the choice of a tracker', () => {
  const stream = { kind: 'qmp-stream', usable: true, reason: '', immuneTo: ['VHOST_KERNEL'] };
  const scan = { kind: 'pagemap-scan', usable: true, reason: '' };
  const compare = { kind: 'compare', usable: true, reason: '', immuneTo: 'all' as const };
  const vhost = { code: 'VHOST_KERNEL', effect: 'compare' as const, text: 'somebody else writes' };
  const shared = { code: 'SHARED_MEMORY', effect: 'compare' as const, text: 'others have it mapped' };

  it('takes the stream where the memory of QEMU cannot be read', () => {
    const trackers = [
      { ...scan, usable: false, reason: 'no permission' },
      { ...compare, usable: false, reason: 'no permission' },
      stream,
    ];
    expect(decideTracker('vm', { trackers, hazards: [] }, 'auto')).toEqual({
      kind: 'qmp-stream',
      reason: 'pagemap-scan: no permission; compare: no permission',
    });
  });

  it('prefers to compare where writes escape', () => {
    const choice = decideTracker('vm', { trackers: [scan, compare, stream], hazards: [vhost] }, 'auto');
    expect(choice).toEqual({ kind: 'compare', reason: 'pagemap-scan: somebody else writes' });
  });

  it('allows the stream against a hazard it is immune to, and no other', () => {
    const trackers = [scan, compare, stream];
    expect(decideTracker('vm', { trackers, hazards: [vhost] }, 'qmp-stream').kind).toBe('qmp-stream');
    expect(() => decideTracker('vm', { trackers, hazards: [vhost, shared] }, 'qmp-stream')).toThrow(
      'others have it mapped',
    );
  });
});
