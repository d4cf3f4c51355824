import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { XenDomain } from '../../adapters/xen/domain/domain.js';
import { framesOf } from '../../adapters/xen/memory/guest-memory.js';
import { FrameReader } from '../../adapters/xen/memory/guest-reader.js';
import { hazardsOf } from '../../adapters/xen/inspect/hazards.js';
import { memoryTargetOf, videoKibOf, withMemoryTarget } from '../../adapters/xen/domain/memory-target.js';
import { firstFrameOf, layoutOf, windowsOver } from '../../adapters/xen/domain/physmap.js';
import {
  FrameTable,
  FrameTableFile,
  NO_FRAME,
  removeFrameTable,
  writeFrameTable,
} from '../../adapters/xen/memory/pv/frame-table.js';
import { tableLevel, toGuestFrames } from '../../adapters/xen/memory/pv/page-table.js';
import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { FakeXen } from '../support/fake-xen.js';

const PAGE = 4096;
const EFAULT = 14;

describe('how much memory a restored domain may have', () => {
  const TARGET = '/local/domain/7/memory/target';
  const xen = new FakeXen(64);
  const domain = new XenDomain(xen, xen.domid);

  it('is what the domain was told to have', () => {
    xen.store.set(TARGET, '200');
    expect(memoryTargetOf(domain)).toBe(200);
  });

  it('is what it has while it has not given back what it should', () => {
    const large = new FakeXen(1024);
    large.store.set(TARGET, '200');
    expect(memoryTargetOf(new XenDomain(large, large.domid))).toBe(4096);
    large.store.delete(TARGET);
    expect(memoryTargetOf(new XenDomain(large, large.domid))).toBe(4096);
  });

  it('includes the memory of the graphics card, which xenstore leaves out', () => {
    xen.store.set(TARGET, '200');
    expect(memoryTargetOf(domain, 56)).toBe(256);
    const large = new FakeXen(1024);
    large.store.set(TARGET, '200');
    expect(memoryTargetOf(new XenDomain(large, large.domid), 56)).toBe(4096);
    expect(memoryTargetOf(new XenDomain(large, large.domid), 3000)).toBe(3200);
    expect(videoKibOf({ b_info: { video_memkb: 16384 } })).toBe(16384);
    expect(videoKibOf({ b_info: {} })).toBe(0);
  });

  it('takes the place of what the configuration said when it was read', () => {
    const config = {
      c_info: { name: 'web1' },
      b_info: { target_memkb: 92160, max_memkb: 131072, acpi: 'x' },
    };
    expect(withMemoryTarget(config, 131072)).toEqual({
      ...config,
      b_info: { target_memkb: 131072, max_memkb: 131072, acpi: 'x' },
    });
    expect(withMemoryTarget(config, 262144).b_info).toMatchObject({ max_memkb: 262144 });
  });
});

describe('the memory map of a Xen guest', () => {
  const PVH_128_MIB = [
    { firstFrame: 0, frameCount: 16 },
    { firstFrame: 17, frameCount: 0x8000 - 17 },
    { firstFrame: 0xfc000, frameCount: 9 },
    { firstFrame: 0xfeff8, frameCount: 8 },
  ];

  it('is cut into windows around what is used', () => {
    const layout = layoutOf(windowsOver(PVH_128_MIB, 0x8100));
    expect(layout.regions.map(({ id, pageCount }) => [id, pageCount])).toEqual([
      ['gfn-0', 0x8200],
      ['gfn-fc000', 512],
      ['gfn-fee00', 512],
    ]);
    expect(layout.regions.map(firstFrameOf)).toEqual([0, 0xfc000, 0xfee00]);
  });

  it('stays the same however far the guest balloons', () => {
    const ballooned = [{ firstFrame: 0, frameCount: 3000 }, ...PVH_128_MIB.slice(2)];
    expect(windowsOver(ballooned, 0x8100)).toEqual(windowsOver(PVH_128_MIB, 0x8100));
  });

  it('goes on at 4 GiB for a guest that is larger than the space below', () => {
    const windows = windowsOver([], 0x140000);
    expect(windows).toEqual([
      { firstFrame: 0, frameCount: 0xf0000 },
      { firstFrame: 0x100000, frameCount: 0x50000 },
    ]);
  });

  it('gives the frames of the pages that are present, region by region', () => {
    const layout = layoutOf(windowsOver(PVH_128_MIB, 0x8100));
    const present = new DirtyBitmap(layout.pageSpan);
    present.setRange(5, 2);
    // A run of page indexes that crosses into the next region.
    present.setRange(0x8200 - 1, 3);
    expect([...framesOf(layout, present)]).toEqual([5, 2, 0x81ff, 1, 0xfc000, 2]);
  });
});

describe('reading the memory of a Xen guest', () => {
  const regions = [
    { firstPage: 0, pageCount: 1024, firstFrame: 0 },
    { firstPage: 1024, pageCount: 512, firstFrame: 0xe00 },
  ];

  function readerOf(xen: FakeXen): FrameReader {
    return new FrameReader(xen, { version: xen.version, domid: xen.domid, regions });
  }

  it('follows runs across regions, and more pages than one call takes', () => {
    const xen = new FakeXen(1024);
    for (let frame = 0; frame < 1024; frame++) xen.write(frame, frame % 251);
    xen.balloonIn(0xe00, 0x77);
    const into = new Uint8Array(1025 * PAGE);
    readerOf(xen).readRuns(Uint32Array.of(0, 1025), into);
    const first = (page: number): number => into[page * PAGE]!;
    expect([first(0), first(1), first(1023), first(1024)]).toEqual([0, 1, 1023 % 251, 0x77]);
  });

  it('reads a page as zero that the guest gave back in the meantime', () => {
    const xen = new FakeXen(8);
    for (let frame = 0; frame < 8; frame++) xen.write(frame, 9);
    xen.balloonOut(3);
    const into = new Uint8Array(8 * PAGE).fill(0xaa);
    readerOf(xen).readRuns(Uint32Array.of(0, 8), into);
    expect([2, 3, 4].map((page) => into[page * PAGE])).toEqual([9, 0, 9]);
  });

  it.each([
    ['VM_MEMORY_READ', (xen: FakeXen) => (xen.fault = { call: 'readPages', errno: EFAULT })],
    ['VM_GONE', (xen: FakeXen) => (xen.isGone = true)],
  ])('fails with %s instead of reading something else', (code, damage) => {
    const xen = new FakeXen(8);
    damage(xen);
    expect(() => readerOf(xen).readRuns(Uint32Array.of(0, 8), new Uint8Array(8 * PAGE))).toThrow(
      expect.objectContaining({ code }),
    );
  });

  it('refuses a buffer that is too small and pages that are not there', () => {
    const reader = readerOf(new FakeXen(8));
    expect(() => reader.readRuns(Uint32Array.of(0, 2), new Uint8Array(PAGE))).toThrow(RangeError);
    expect(() => reader.readRuns(Uint32Array.of(1536, 1), new Uint8Array(PAGE))).toThrow(RangeError);
  });
});

describe('page tables of a PV guest', () => {
  /** Machine frame = guest frame + 0x123456. */
  const toGuest = (machine: number): number | undefined =>
    machine >= 0x123456 && machine < 0x124456 ? machine - 0x123456 : undefined;

  function tableWith(entries: Readonly<Record<number, bigint>>): Buffer {
    const page = Buffer.alloc(PAGE);
    for (const [slot, entry] of Object.entries(entries)) page.writeBigUInt64LE(entry, Number(slot) * 8);
    return page;
  }

  it('get the frames of the guest, and keep all other bits', () => {
    const flags = 0x8000_0000_0000_0067n;
    const page = tableWith({ 0: ((0x123456n + 5n) << 12n) | flags, 511: ((0x123456n + 0xfffn) << 12n) | 1n });
    toGuestFrames(page, 1, toGuest);
    expect(page.readBigUInt64LE(0)).toBe((5n << 12n) | flags);
    expect(page.readBigUInt64LE(511 * 8)).toBe((0xfffn << 12n) | 1n);
  });

  it('leave alone what is not present, such as a swap entry', () => {
    const page = tableWith({ 3: 0xdead_beef_0000n });
    toGuestFrames(page, 1, toGuest);
    expect(page.readBigUInt64LE(3 * 8)).toBe(0xdead_beef_0000n);
  });

  it('lose the slots of the hypervisor in the top level, and only there', () => {
    const entries = {
      255: (0x123456n << 12n) | 1n,
      256: 0x999001n,
      271: 0x999001n,
      272: (0x123457n << 12n) | 1n,
    };
    const page = tableWith(entries);
    toGuestFrames(page, 4, toGuest);
    expect([255, 256, 271, 272].map((slot) => page.readBigUInt64LE(slot * 8))).toEqual([1n, 0n, 0n, 0x1001n]);
    expect(() => toGuestFrames(tableWith(entries), 3, toGuest)).toThrow();
  });

  it('are refused when they lead out of the guest', () => {
    const page = tableWith({ 0: 0x999001n });
    expect(() => toGuestFrames(page, 1, toGuest)).toThrow(
      expect.objectContaining({ code: 'VM_MEMORY_READ' }),
    );
  });

  it.each([
    [0, 0],
    [1, 1],
    [4, 4],
    [12, 4],
    [9, 1],
    [5, 0],
    [15, 0],
  ])('type %i is level %i', (type, level) => expect(tableLevel(type)).toBe(level));
});

describe('the table of machine frames', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'cairn-xen-frames-'));
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  it('reaches the workers, anew in each stop, and not while the guest runs', () => {
    const path = join(dir, 'frames');
    const file = new FrameTableFile(path);
    expect(file.read()).toBeUndefined();
    writeFrameTable(path, new FrameTable(Uint32Array.of(0x500, NO_FRAME, 0x300), Uint8Array.of(0, 0, 4)));
    expect(file.read()?.guestFrameOf(0x300)).toBe(2);
    expect(file.read()?.isPresent(1)).toBe(false);
    writeFrameTable(path, new FrameTable(Uint32Array.of(0x501, 0x502), Uint8Array.of(0, 15)));
    expect(file.read()?.guestFrameOf(0x300)).toBeUndefined();
    expect([0, 1, 2].map((frame) => file.read()?.isPresent(frame))).toEqual([true, false, false]);
    removeFrameTable(path);
    expect(file.read()).toBeUndefined();
  });
});

describe('what stands in the way of a checkpoint', () => {
  const info = {
    domid: 1,
    uuid: '',
    isDying: false,
    isHvm: true,
    hasHap: true,
    isPaused: false,
    isSuspended: false,
    isDown: false,
    totalPages: 1,
    maxPages: 1,
    sharedInfoFrame: 0n,
    vcpuCount: 1,
  };
  const found = {
    info,
    config: { c_info: { type: 'pvh' } },
    offersSuspend: true,
    foreignSave: '',
    xen: { major: 4, minor: 17 },
    allowsUnproven: false,
    deviceModel: { kind: 'qemu_xen', domain: '', problem: '', hasMovedMemory: false },
  };
  const codes = (more: object): readonly string[] =>
    hazardsOf({ ...found, ...more }).map(({ code, effect }) => `${effect} ${code}`);

  it('is nothing for a PVH guest with Xen drivers', () => expect(codes({})).toEqual([]));

  it('is nothing for one that says it has no shim', () =>
    expect(
      codes({ config: { c_info: { type: 'pvh' }, b_info: { 'type.pvh': { pvshim: 'False' } } } }),
    ).toEqual([]));

  it('is nothing on another release for whoever asks for a trial', () =>
    expect(codes({ xen: { major: 4, minor: 18 }, allowsUnproven: true })).toEqual([]));

  it.each([
    ['a release that was never run', { xen: { major: 4, minor: 18 } }, 'refuse XEN_UNPROVEN'],
    ['a PV guest', { config: { c_info: { type: 'pv' } } }, 'note XEN_PV'],
    [
      'a shim',
      { config: { c_info: { type: 'pvh' }, b_info: { 'type.pvh': { pvshim: 'True' } } } },
      'refuse XEN_PVSHIM',
    ],
    ['passthrough', { config: { c_info: { type: 'pvh' }, pcidevs: [{}] } }, 'refuse XEN_PASSTHROUGH'],
    ['a kernel that cannot suspend', { offersSuspend: false }, 'refuse XEN_NO_SUSPEND'],
    ['xl pause', { info: { ...info, isPaused: true } }, 'note XEN_PAUSED'],
    ['a save by somebody else', { foreignSave: 'libxl-save-helper' }, 'note XEN_FOREIGN_SAVE'],
  ])('is said for %s', (_, more, expected) => expect(codes(more)).toEqual([expected]));
});
