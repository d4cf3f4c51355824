import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { XenDomain } from '../../adapters/xen/domain/domain.js';
import { PvGuestMemory } from '../../adapters/xen/memory/guest-memory.js';
import { PvReader } from '../../adapters/xen/memory/pv/guest-reader.js';
import { PvMemory } from '../../adapters/xen/memory/pv/pv-memory.js';
import { NO_FRAME } from '../../adapters/xen/memory/pv/frame-table.js';
import { LIBXC_RECORD } from '../../adapters/xen/stream/format.js';
import type { CallResult } from '../../src/ffi/libc.js';
import { FakeXen } from '../support/fake-xen.js';

const PAGE = 4096;
/** The guest's frame f is machine frame 0x100 + f. */
const BASE = 0x100;
const FRAMES = 8;
const SHARED_INFO = 0x50;
const P2M_ADDRESS = 0xffff_c900_0000_0000n;
/** Guest frames with a part: four levels of page tables, the P2M itself, the start info page. */
const ROOT = 1;
const P2M_LEAF = 5;
const START_INFO = 6;
const BALLOONED = 7;
const VCPU_INFO = 14;

/** A suspended 64-bit PV guest with a linear P2M of one page and two processors, the second unplugged. */
class FakePv extends FakeXen {
  override isHvm = false;
  online = [1, 0];

  constructor() {
    super(0);
    this.isSuspended = true;
    for (let frame = 0; frame < FRAMES; frame++) this.pages.set(BASE + frame, new Uint8Array(PAGE));
    const shared = this.#page(SHARED_INFO);
    shared.writeBigUInt64LE(BigInt(FRAMES), 3088);
    shared.writeBigUInt64LE(BigInt(BASE + ROOT) << 12n, 3088 + 24);
    shared.writeBigUInt64LE(P2M_ADDRESS, 3088 + 32);
    for (let level = 4; level > 0; level--) {
      const slot = Number((P2M_ADDRESS >> BigInt(12 + 9 * (level - 1))) & 511n);
      const machine = BASE + ROOT + (4 - level);
      this.#page(machine).writeBigUInt64LE((BigInt(machine + 1) << 12n) | 1n, slot * 8);
    }
    for (let frame = 0; frame < FRAMES; frame++) {
      const entry = frame === BALLOONED ? 0xffff_ffff_ffff_ffffn : BigInt(BASE + frame);
      this.#page(BASE + P2M_LEAF).writeBigUInt64LE(entry, frame * 8);
    }
  }

  override domainInfo(first: number, max: number, into: Uint8Array): CallResult {
    const done = super.domainInfo(first, max, into);
    const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
    view.setBigUint64(this.table.domainInfo.sharedInfoFrame, BigInt(SHARED_INFO), true);
    view.setUint32(this.table.domainInfo.maxVcpuId, 1, true);
    return done;
  }

  override vcpuContext(_domid: number, _vcpu: number, into: Uint8Array): CallResult {
    const context = Buffer.from(into.buffer, into.byteOffset, into.byteLength);
    context.writeBigUInt64LE(BigInt(BASE + START_INFO), 520 + 96);
    context.writeBigUInt64LE(BigInt(BASE + ROOT) << 12n, 4984 + 8 * 3);
    return { value: 0, errno: 0 };
  }

  override domctl(struct: Uint8Array): CallResult {
    const request = Buffer.from(struct.buffer, struct.byteOffset, struct.byteLength);
    if (request.readUInt32LE(0) === VCPU_INFO) request[20] = this.online[request.readUInt32LE(16)]!;
    return { value: 0, errno: 0 };
  }

  #page(machine: number): Buffer {
    const bytes = this.pages.get(machine) ?? new Uint8Array(PAGE);
    this.pages.set(machine, bytes);
    return Buffer.from(bytes.buffer, bytes.byteOffset, PAGE);
  }
}

describe('the memory of a suspended PV guest', () => {
  const xen = new FakePv();
  const memory = new PvMemory(new XenDomain(xen, xen.domid));

  it('is found through its own table of machine frames', () => {
    const { table, leaves } = memory.load();
    expect([...table.machineFrames]).toEqual([
      ...Array.from({ length: FRAMES - 1 }, (_, frame) => BASE + frame),
      NO_FRAME,
    ]);
    expect(leaves).toEqual([BASE + P2M_LEAF]);
    expect(table.isPresent(BALLOONED)).toBe(false);
  });

  const vcpusOf = (online: readonly number[]): readonly number[] => {
    xen.online = [...online];
    return memory
      .captureState(memory.load(), Uint32Array.of(0, FRAMES - 1))
      .after.filter(({ type }) => type === LIBXC_RECORD.vcpuBasic)
      .map(({ body }) => Buffer.from(body.buffer, body.byteOffset, body.byteLength).readUInt32LE(0));
  };

  it('has records of the processors that are online, and of no other', () => {
    expect(vcpusOf([1, 0])).toEqual([0]);
    expect(vcpusOf([1, 1])).toEqual([0, 1]);
  });

  it('names frames of its own in them', () => {
    const { after } = memory.captureState(memory.load(), Uint32Array.of(0, FRAMES - 1));
    const { body } = after.find(({ type }) => type === LIBXC_RECORD.vcpuBasic)!;
    const context = Buffer.from(body.buffer, body.byteOffset + 8, body.byteLength - 8);
    expect(context.readBigUInt64LE(520 + 96)).toBe(BigInt(START_INFO));
    expect(context.readBigUInt64LE(4984 + 8 * 3)).toBe(BigInt(ROOT) << 12n);
    const frames = after.find(({ type }) => type === LIBXC_RECORD.pvFrames)!.body;
    expect(frames[8]).toBe(P2M_LEAF);
  });
});

describe('the table of frames that workers read by', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'cairn-pv-'));
  });
  afterEach(() => rmSync(dir, { recursive: true }));

  it('of a Cairn that was killed in a stop is dropped, and one of the present stop is not', () => {
    const xen = new FakePv();
    const memory = new PvGuestMemory(new XenDomain(xen, xen.domid), dir);
    const path = join(dir, `xen-frames-${xen.domid}`);
    writeFileSync(path, 'left over');
    memory.discardLeftovers();
    expect(existsSync(path)).toBe(false);
    memory.stopped();
    memory.discardLeftovers();
    expect(existsSync(path)).toBe(true);
    memory.running();
    expect(existsSync(path)).toBe(false);
  });

  it('is not needed to refuse a page that is in no region, while the guest runs as well', () => {
    const xen = new FakePv();
    const reader = new PvReader(xen, {
      version: xen.version,
      domid: xen.domid,
      tablePath: join(dir, 'none'),
      regions: [{ firstPage: 0, pageCount: FRAMES, firstFrame: 0 }],
    });
    const page = new Uint8Array(PAGE).fill(1);
    expect(() => reader.readRuns(Uint32Array.of(FRAMES, 1), page)).toThrow(RangeError);
    reader.readRuns(Uint32Array.of(0, 1), page);
    expect(page.every((byte) => byte === 0)).toBe(true);
    reader.close();
  });
});
