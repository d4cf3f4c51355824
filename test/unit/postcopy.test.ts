import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { option } from '../../adapters/disks/qcow2/command-line.js';
import { refuseFilling } from '../../adapters/kvm/inspect/filling.js';
import { refuseLazily, refuseTarget } from '../../adapters/kvm/restore/lazy/refusals.js';
import { libvirtHypervisor } from '../../adapters/libvirt/libvirt-hypervisor.js';

import { opening, reopening, resuming, runPackage } from '../../adapters/qemu/postcopy/commands.js';
import { Pace } from '../../adapters/qemu/postcopy/pace.js';
import { PageFeed } from '../../adapters/qemu/postcopy/page-feed.js';
import { PageRecords } from '../../adapters/qemu/postcopy/page-records.js';
import { ReturnPath, type ReturnMessage } from '../../adapters/qemu/postcopy/return-path.js';
import { SentPages } from '../../adapters/qemu/postcopy/sent-pages.js';
import { makeRef } from '../../src/format/record-ref.js';
import {
  fillingNotePath,
  fillingNotes,
  removeFillingNote,
  writeFillingNote,
  type FillingNote,
} from '../../src/host/filling-note.js';
import { ownIdentity } from '../../src/host/process-identity.js';
import { lookThrough } from '../../src/restore/lazy/paged-source.js';
import { readRamBlocks } from '../lab/support/ground-truth.js';
import { CheckpointError } from '../../src/errors.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import type { ServingEvent } from '../../src/hypervisor/page-server.js';
import type { PagedSource } from '../../src/hypervisor/page-serving.js';
import type { CheckpointSource, PageChunk } from '../../src/hypervisor/restore.js';

const PAGE = 4096;
const LAYOUT = layOut([
  { id: 'pc.ram', sizeBytes: 100 * PAGE },
  { id: '/rom@etc/acpi/tables', sizeBytes: 3 * PAGE },
]);
const ACPI = LAYOUT.regions[1]!;

describe('what a postcopy source says first', () => {
  it('opens a return path, advises, lists the blocks and discards each of them', () => {
    const bytes = opening('pc-i440fx-7.2', LAYOUT).toString('hex');
    const ram = Buffer.from('pc.ram').toString('hex');
    const advised =
      '5145564d00000003' + // QEVM, version 3
      `070000000d${Buffer.from('pc-i440fx-7.2').toString('hex')}` +
      '0800010000' + // OPEN_RETURN_PATH
      '080003001000000000000010000000000000001000'; // POSTCOPY_ADVISE, two page sizes
    expect(bytes.slice(0, advised.length)).toBe(advised);
    // u8 version, block, NUL, from 0, all 100 pages
    expect(bytes).toContain(
      `0800060019` + `00` + `06${ram}` + '00' + '0000000000000000' + '0000000000064000',
    );
    expect(bytes.indexOf('0800060019')).toBeGreaterThan(bytes.indexOf(`06${ram}0000000000064000`));
  });

  it('wraps the device state so that the destination listens before it and runs after it', () => {
    const devices = Buffer.from('04aabbcc', 'hex');
    expect(runPackage(devices).toString('hex')).toBe(
      '0800070004' + // PACKAGED
        '00000017' + // 23 bytes
        '0800040000' + // LISTEN
        '04aabbcc' +
        '080002000400000003' + // PING 3
        '0800050000', // RUN
    );
  });

  it('refuses more device state than QEMU takes in one piece', () => {
    expect(() => runPackage(new Uint8Array(1 << 24))).toThrow(
      expect.objectContaining({ code: 'VM_UNSUPPORTED' }),
    );
  });

  it('asks what is there when it takes another one its place, and has the destination go on', () => {
    const ram = Buffer.from('pc.ram').toString('hex');
    const acpi = Buffer.from(ACPI.id).toString('hex');
    expect(reopening(LAYOUT).toString('hex')).toBe(
      `0800010000` + `08000a000706${ram}` + `08000a001514${acpi}`,
    );
    expect(resuming().toString('hex')).toBe('0800090000');
  });
});

describe('the return path', () => {
  const read = (hex: string, cut = Infinity): ReturnMessage[] => {
    const path = new ReturnPath(LAYOUT);
    const bytes = Buffer.from(hex.replaceAll(' ', ''), 'hex');
    const found: ReturnMessage[] = [];
    for (let at = 0; at < bytes.length; at += cut) found.push(...path.read(bytes.subarray(at, at + cut)));
    return found;
  };
  // As QEMU 7.2 said it: a pong, a request with the name of the block, one without, the end.
  const SAID =
    '0002 0004 00000003  0003 0013 0000000000002000 00001000 06 70632e72616d  0004 000c 0000000000003000 00002000  0001 0004 00000000';
  const MEANT = [
    { kind: 'pong', value: 3 },
    { kind: 'pages', firstPage: 2, pageCount: 1 },
    { kind: 'pages', firstPage: 3, pageCount: 2 },
    { kind: 'shut', error: 0 },
  ];

  it.each([Infinity, 1, 7])('is understood in pieces of %d bytes', (cut) => {
    expect(read(SAID, cut)).toEqual(MEANT);
  });

  it('tells which pages of a block have arrived', () => {
    const name = Buffer.from(ACPI.id).toString('hex');
    const said = `0005 0015 14${name} 0000000000000008 0500000000000000 0123456789abcdef  0006 0004 00000001`;
    const [received, resumed] = read(said, 5);
    expect(received).toMatchObject({ kind: 'received', region: ACPI });
    expect(resumed).toEqual({ kind: 'resumed' });
    const sent = new SentPages(LAYOUT);
    sent.addReceived(ACPI, (received as { readonly bitmap: Uint8Array }).bitmap);
    expect([0, 1, 2].map((page) => sent.has(ACPI.firstPage + page))).toEqual([true, false, true]);
    expect(sent.count).toBe(2);
  });

  it.each([
    ['a block that is not there', '0003 000d 0000000000002000 00001000 00'],
    ['pages of no block', '0004 000c 0000000000003000 00001000'],
    ['pages past the end', '0003 0013 0000000000064000 00001000 06 70632e72616d'],
    ['half a page', '0003 0013 0000000000000800 00001000 06 70632e72616d'],
    ['another number of pages', '0005 0007 06 70632e72616d 0000000000000008'],
    ['an unknown message', '0009 0000'],
    ['a resumption that it does not take', '0006 0004 00000000'],
  ])('is not believed when it speaks of %s', (_, said) => {
    expect(() => read(said)).toThrow(expect.objectContaining({ code: 'STREAM_MALFORMED' }));
  });
});

describe('pages that were sent', () => {
  it('are never sent twice', () => {
    const sent = new SentPages(LAYOUT);
    sent.add(7);
    expect(() => sent.add(7)).toThrow(RangeError);
  });
});

describe('a pace', () => {
  it('has the next bytes wait as long as those before take', () => {
    const pace = new Pace(1000);
    pace.took(500, 0);
    expect(pace.waitMs(0)).toBe(500);
    expect(pace.waitMs(400)).toBe(100);
    // Time in which nothing was sent is not made up for.
    expect(pace.waitMs(9000)).toBe(0);
    pace.took(100, 9000);
    expect(pace.waitMs(9000)).toBe(100);
  });
});

describe('a page feed', () => {
  const stored = new Map<number, Buffer>();
  for (const page of [0, 1, 2, 3, 4, 40, 41, 99, ACPI.firstPage])
    stored.set(page, Buffer.alloc(PAGE, page + 1));

  function sourceOf(isDamaged: (page: number) => boolean = () => false, hot: number[] = []): PagedSource {
    const check = (page: number): void => {
      if (isDamaged(page)) throw new CheckpointError('REPO_DAMAGED', `page ${page} is damaged`);
    };
    // eslint-disable-next-line @typescript-eslint/require-await -- the contract is asynchronous, the pages are at hand
    async function* pagesAsStored(): AsyncGenerator<PageChunk> {
      for (const [page, bytes] of [...stored].reverse()) {
        check(page);
        yield { firstPage: page, pageCount: 1, bytes };
      }
    }
    return {
      ...{ checkpointId: 'c0ffee0123456789', hypervisor: 'kvm', machine: {}, machineType: 'pc-i440fx-7.2' },
      ...{ layout: LAYOUT, disks: [], pages: pagesAsStored, pagesAsStored },
      deviceState: () => Promise.resolve(new Uint8Array(0)),
      isStored: (page) => stored.has(page),
      storedPages: stored.size,
      hotPages: Uint32Array.from(hot),
      // eslint-disable-next-line @typescript-eslint/require-await -- as above
      readPages: async (pages, into) => {
        for (const [i, page] of pages.entries()) {
          check(page);
          into.set(stored.get(page)!, i * PAGE);
        }
      },
    };
  }

  function feedOf(source: PagedSource): {
    readonly feed: PageFeed;
    readonly written: Buffer[];
    readonly events: ServingEvent[];
  } {
    const written: Buffer[] = [];
    const events: ServingEvent[] = [];
    const destination = {
      write: (bytes: Uint8Array) => void written.push(Buffer.from(bytes)),
      below: () => Promise.resolve(),
    };
    const report = (event: ServingEvent): void => void events.push(event);
    const feed = new PageFeed({ source, destination, report, sent: new SentPages(LAYOUT) });
    return { feed, written, events };
  }

  /** The memory that a destination has of it, by the lab's reader of streams, which shares no code with the product. */
  function memoryOf(written: readonly Buffer[]): Map<string, Buffer> {
    const head = opening('pc-i440fx-7.2', LAYOUT);
    return readRamBlocks(
      Buffer.concat([
        head,
        Buffer.from('0200ffff00', 'hex'),
        ...written,
        // Behind the pages the reader wants to see a device.
        Buffer.from('0400000001056368657373000000000000000100', 'hex'),
      ]),
    );
  }

  it('sends every page that is not zero once, in the order of the repository', async () => {
    const { feed, written } = feedOf(sourceOf());
    await feed.push();
    expect(feed.donePages).toBe(stored.size);
    written.push(feed.end().subarray(0, -1));
    const memory = memoryOf(written);
    for (const [page, bytes] of stored) {
      const block = page < ACPI.firstPage ? 'pc.ram' : ACPI.id;
      const at = (page % ACPI.firstPage) * PAGE;
      expect(
        memory
          .get(block)!
          .subarray(at, at + PAGE)
          .equals(bytes),
      ).toBe(true);
    }
  });

  it('sends hot pages first', async () => {
    const { feed, written } = feedOf(sourceOf(undefined, [41, 3]));
    await feed.push();
    const first = Buffer.concat(written);
    expect(first.readBigUInt64BE(0)).toBe(BigInt(41 * PAGE + 8));
    expect(first.readBigUInt64BE(8 + 7 + PAGE)).toBe(BigInt(3 * PAGE + 0x28));
  });

  it('answers a request with the page and some that follow, zero pages as well, and never again', async () => {
    const { feed, written } = feedOf(sourceOf());
    const answering = feed.answer();
    feed.ask(3, 1);
    feed.ask(3, 1);
    while (feed.donePages < 2) await new Promise((resolve) => setImmediate(resolve));
    // 3 and 4 are stored, 5 to 10 are zero.
    expect(Buffer.concat(written).length).toBe(8 + 7 + 1 + 5 * 9 + 2 * (8 + PAGE));
    await feed.push();
    feed.end();
    await answering;
  });

  it('does not end while a page is missing', () => {
    const { feed } = feedOf(sourceOf());
    expect(() => feed.end()).toThrow(RangeError);
  });

  it('sends all but what cannot be read, and says that somebody waits for that', async () => {
    const { feed, written, events } = feedOf(sourceOf((page) => page === 40));
    void feed.push();
    void feed.answer();
    while (!events.some(({ event }) => event === 'damaged'))
      await new Promise((resolve) => setTimeout(resolve, 5));
    expect(feed.donePages).toBe(stored.size - 1);
    expect(events.at(-1)).toMatchObject({ pages: 1, isAwaited: false, error: { code: 'REPO_DAMAGED' } });
    const sentBytes = Buffer.concat(written).length;
    feed.ask(40, 1);
    expect(events.at(-1)).toMatchObject({ event: 'damaged', isAwaited: true });
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(Buffer.concat(written).length).toBe(sentBytes);
    expect(() => feed.end()).toThrow(RangeError);
  });

  it('finds out at a request that its page cannot be read', async () => {
    const { feed, events } = feedOf(sourceOf((page) => page === 2));
    void feed.answer();
    // 2 is only among those that would be sent along.
    feed.ask(1, 1);
    while (feed.donePages < 1) await new Promise((resolve) => setImmediate(resolve));
    expect(events.filter(({ event }) => event === 'damaged')).toEqual([]);
    feed.ask(2, 1);
    while (!events.some(({ event }) => event === 'damaged'))
      await new Promise((resolve) => setImmediate(resolve));
    expect(events.find(({ event }) => event === 'damaged')).toMatchObject({
      isAwaited: true,
      error: { message: 'page 2 is damaged' },
    });
  });
});

describe('a lazy restore', () => {
  it.each([
    ['-mem-path=/dev/hugepages', 'mem-path', '/dev/hugepages'],
    ['a memory file', 'object', 'memory-backend-file,id=ram,size=1G,mem-path=/x'],
    ['shared memory', 'object', 'memory-backend-ram,id=ram,size=1G,share=on'],
    ['memory that is there before', 'object', 'memory-backend-ram,id=ram,size=1G,prealloc=on'],
    ['locked memory', 'overcommit', 'mem-lock=on'],
    ['vhost', 'netdev', 'tap,id=n,vhost=on'],
    ['vhost-user', 'netdev', 'vhost-user,id=n,chardev=c'],
    ['virtio-mem', 'device', 'virtio-mem-pci,id=m'],
    ['VFIO', 'device', 'vfio-pci,host=01:00.0'],
    ['KVM', 'enable-kvm', undefined],
    ['KVM as a machine has it', 'machine', 'pc-i440fx-7.2,accel=kvm'],
    ['settings of migrations', 'global', 'migration.x-multifd=on'],
  ])('is refused for %s', (_, name, value) => {
    const refuse = (): void => refuseLazily([option(name, value)]);
    expect(refuse).toThrow(expect.objectContaining({ code: 'VM_UNSUPPORTED', hint: expect.any(String) }));
  });

  it('is not refused for an ordinary machine', () => {
    const options = [
      option('machine', 'pc-i440fx-7.2'),
      option('accel', 'tcg'),
      option('netdev', 'user,id=n'),
      option('object', 'memory-backend-ram,id=ram,size=1G'),
      option('enable-fips'),
    ];
    expect(() => refuseLazily(options)).not.toThrow();
  });

  it.each([
    [{ lazy: true, eager: true }, 'USAGE'],
    [{ background: true }, 'USAGE'],
    [{ lazy: true, fillRate: '0' }, 'USAGE'],
    [{ lazy: true, fillRate: 'fast' }, 'USAGE'],
    [{ lazy: true, target: 'unix:/run/x' }, 'VM_UNSUPPORTED'],
  ] as const)('with %o ends by %s', (options, code) => {
    expect(() => refuseTarget(options)).toThrow(expect.objectContaining({ code }));
  });

  it('is refused through libvirt, with the reason', async () => {
    const request = { paused: false, keepDisks: false };
    await expect(
      libvirtHypervisor.restore({} as CheckpointSource, request, { lazy: true }),
    ).rejects.toMatchObject({ code: 'VM_UNSUPPORTED', message: expect.stringContaining('save image') });
  });
});

describe('the note of a VM that is being filled', () => {
  const note: FillingNote = {
    ...{
      state: 'filling',
      args: { qmpPath: '/run/web1.qmp', monitorInode: 7 },
      damage: {},
      isAwaited: false,
    },
    ...{
      vmAddress: 'qmp:/run/web1.qmp',
      vmName: 'web1',
      vm: ownIdentity(),
      server: { pid: 1, startTime: '' },
    },
    ...{ repository: 'file:/srv/cairn', checkpointId: 'c0ffee0123456789', bytesPerSecond: 1 },
    ...{ totalPages: 200, donePages: 90 },
  };
  let folder = '';
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'filling-'));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it('is read as it was written, as long as the VM lives', () => {
    writeFillingNote(folder, note);
    writeFillingNote(folder, { ...note, vm: { pid: process.pid, startTime: '1' } });
    expect(fillingNotes(folder)).toEqual([note]);
    removeFillingNote(folder, note.vm);
    expect(fillingNotes(folder)).toEqual([]);
  });

  it.each([
    ['no JSON', '{'],
    ['another version', '{"state":"filling"}'],
  ])('that is %s is left out', (_, text) => {
    writeFileSync(fillingNotePath(folder, note.vm), text);
    expect(fillingNotes(folder)).toEqual([]);
  });

  it('keeps checkpoints away, for as long as it is there', async () => {
    writeFillingNote(folder, note);
    await expect(refuseFilling(folder, () => true)).rejects.toMatchObject({
      code: 'VM_FILLING',
      retryable: true,
      message: expect.stringContaining('no page server is at work'),
      hint: 'cairn restore --resume qmp:/run/web1.qmp starts another page server',
    });
    writeFillingNote(folder, { ...note, server: ownIdentity() });
    await expect(refuseFilling(folder, () => true)).rejects.toMatchObject({
      message: expect.stringContaining('45 %'),
    });
    removeFillingNote(folder, note.vm);
    await refuseFilling(folder, () => true);
  });
});

describe('hot pages', () => {
  it('are those of the last increments, newest first', async () => {
    const refs = Float64Array.of(0, makeRef(1, 0, 0), makeRef(3, 0, 1), makeRef(2, 5, 0), makeRef(1, 0, 1));
    const windows = [
      { firstPage: 10, refs: refs.subarray(0, 3) },
      { firstPage: 20, refs: refs.subarray(3) },
    ];
    const stored: number[] = [];
    const { storedPages, hotPages } = await lookThrough(windowsOf(windows), { kind: 'incremental' }, (page) =>
      stored.push(page),
    );
    expect([...hotPages]).toEqual([12, 20]);
    expect([stored, storedPages]).toEqual([[11, 12, 20, 21], 4]);
    const ofBase = await lookThrough(windowsOf(windows), { kind: 'base' }, () => undefined);
    expect([...ofBase.hotPages]).toEqual([]);
  });

  it('are the newest 4096, however many were written', async () => {
    const refs = Float64Array.from({ length: 300_000 }, (_, i) =>
      makeRef(2 + ((i * 7919) % 5000), i % 1000, 1),
    );
    const windows = windowsOf([{ firstPage: 0, refs }]);
    const { hotPages } = await lookThrough(windows, { kind: 'incremental' }, () => undefined);
    const newest = [...refs].sort((a, b) => b - a).slice(0, 4096);
    expect([...hotPages].map((page) => refs[page])).toEqual(newest);
  });
});

describe('page records', () => {
  it('name a block once, and make a page of zeros short', () => {
    const records = new PageRecords();
    const [ram] = LAYOUT.regions;
    expect(records.encode(ram!, 1, null).toString('hex')).toBe(`00000000000010020670632e72616d00`);
    expect(records.encode(ram!, 2, Buffer.alloc(PAGE)).toString('hex')).toBe('000000000000202200');
    const page = records.encode(ram!, 3, Buffer.alloc(PAGE, 7));
    expect(page.subarray(0, 9).toString('hex')).toBe('000000000000302807');
    expect(records.encode(ACPI, ACPI.firstPage, null).subarray(0, 9).toString('hex')).toBe(
      '000000000000000214',
    );
    expect(records.end().toString('hex')).toBe('0000000000000010' + '7e00ffff00' + '00');
  });
});

async function* windowsOf<T>(windows: readonly T[]): AsyncGenerator<T> {
  for (const window of windows) yield await Promise.resolve(window);
}
