/**
 * A hypervisor in memory behind the calls of Xen's libraries, for tests of the adapter's own logic and for faults that a real one does not
 * have on demand. It proves nothing about Xen: that is the lab's part.
 */

import { CheckpointError } from '../../src/errors.js';
import type { CallResult } from '../../src/ffi/libc.js';
import { GRANT_TABLE, SHADOW_OP, type LibraryCalls } from '../../adapters/xen/ffi/library.js';
import { versionTable } from '../../adapters/xen/ffi/versions.js';

const PAGE = 4096;
const EINVAL = 22;
const ESRCH = 3;
const XTAB = 15;

export interface FakeFault {
  readonly call: keyof LibraryCalls;
  readonly errno: number;
}

export class FakeXen implements LibraryCalls {
  readonly version = { major: 4, minor: 17 };
  readonly table = versionTable(this.version);
  readonly domid = 7;
  readonly uuid = '01234567-89ab-cdef-0123-456789abcdef';
  /** Memory by frame; a frame that is not in here is a hole. */
  readonly pages = new Map<number, Uint8Array>();
  readonly store = new Map<string, string>();
  readonly resumed: number[] = [];
  /** Reasons of the shutdowns from outside. */
  readonly shutdowns: number[] = [];
  frames = 0x1000;
  maxPages = 1024;
  isLogDirty = false;
  isSuspended = false;
  isPaused = false;
  isGone = false;
  isClosed = false;
  isDown = false;
  isHvm = true;
  /** Whether the guest takes a suspend request, and whether it then suspends. */
  takesRequest = true;
  suspends = true;
  /** Adds to the number of dirty pages that it reports. */
  countError = 0;
  fault: FakeFault | undefined;
  readonly modes: number[] = [];
  /** HVM parameters that are not as the fake has them. */
  readonly params = new Map<number, bigint>();
  grantTableVersion = 1;
  /** The guest's grant table, version 1, one frame; and what a version 2 table has beside. */
  readonly grants = new Uint8Array(PAGE);
  readonly grantStatus = new Uint8Array(PAGE);
  #dirty = new Set<number>();
  /** Pages that were dirty when tracking was switched off: counted until the next clean (paging_log_dirty_op of Xen 4.17). */
  #staleCount = 0;

  constructor(pageCount = 64) {
    for (let frame = 0; frame < pageCount; frame++) this.pages.set(frame, new Uint8Array(PAGE));
    this.store.set(`/local/domain/${this.domid}/control/feature-suspend`, '1');
  }

  /** The guest writes to a page. */
  write(frame: number, value: number): void {
    const page = this.pages.get(frame);
    if (page === undefined) throw new Error(`the guest writes to the hole ${frame}`);
    page.fill(value);
    if (this.isLogDirty) this.#dirty.add(frame);
  }

  /** The guest gives pages back: flagged, as measured on Xen 4.17. */
  balloonOut(frame: number): void {
    this.pages.delete(frame);
    if (this.isLogDirty) this.#dirty.add(frame);
  }

  /** The guest gets a page, and what it writes to it until the next clean is not flagged, as measured on Xen 4.17. */
  balloonIn(frame: number, value = 0): void {
    this.pages.set(frame, new Uint8Array(PAGE).fill(value));
  }

  /** A backend maps a frame that the guest granted under `ref`. */
  mapGrant(ref: number, frame: number, isWritable = true): void {
    const entry = new DataView(this.grants.buffer, ref * 8, 8);
    entry.setUint16(0, 1 | (1 << 3) | (isWritable ? 1 << 4 : 0), true);
    entry.setUint32(4, frame, true);
  }

  /** The frame is flagged now, whatever was written before: unmap_common of Xen. */
  unmapGrant(ref: number): void {
    const entry = new DataView(this.grants.buffer, ref * 8, 8);
    if (this.isLogDirty && (entry.getUint16(0, true) & (1 << 4)) !== 0)
      this.#dirty.add(entry.getUint32(4, true));
    entry.setUint16(0, 1, true);
  }

  /** A backend writes through a mapping: flags nothing. */
  writeFromOutside(frame: number, value: number): void {
    this.pages.get(frame)!.fill(value);
  }

  /** What xl save, migrate and remus do in the end. */
  switchOff(): void {
    this.isLogDirty = false;
    this.#staleCount += this.#dirty.size;
    this.#dirty.clear();
  }

  domainInfo(first: number, _max: number, into: Uint8Array): CallResult {
    const failed = this.#fails('domainInfo', first);
    if (failed !== undefined) return failed;
    const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
    const at = this.table.domainInfo;
    let flags = (this.isHvm ? 2 | 256 : 0) | (this.isPaused ? 8 : 0);
    if (this.isSuspended) flags |= 4 | (2 << 16);
    if (this.isDown) flags |= 4 | (3 << 16);
    view.setUint16(at.domain, this.domid, true);
    view.setUint32(at.flags, flags, true);
    view.setBigUint64(at.totPages, BigInt(this.pages.size), true);
    view.setBigUint64(at.maxPages, BigInt(this.maxPages), true);
    into.set(Buffer.from(this.uuid.replaceAll('-', ''), 'hex'), at.handle);
    return ok(1);
  }

  frameCount(domid: number, into: BigUint64Array): CallResult {
    into[0] = BigInt(this.frames);
    return this.#fails('frameCount', domid) ?? ok(0);
  }

  shadowControl(domid: number, operation: number): CallResult {
    const failed = this.#fails('shadowControl', domid);
    if (failed !== undefined) return failed;
    if (operation === SHADOW_OP.off) {
      this.switchOff();
      return ok(0);
    }
    if (this.isLogDirty) return { value: -1, errno: EINVAL };
    this.isLogDirty = true;
    return ok(0);
  }

  logDirty(
    domid: number,
    operation: number,
    frameCount: number,
    mode: number,
    into: Uint8Array,
    stats: Uint32Array,
  ): CallResult {
    const failed = this.#fails('logDirty', domid);
    if (failed !== undefined) return failed;
    this.modes.push(mode);
    into.fill(0);
    // Without log-dirty the call succeeds as well, and shows nothing.
    for (const frame of this.#dirty) into[frame >>> 3]! |= 1 << (frame & 7);
    stats[1] = this.#dirty.size + this.#staleCount + this.countError;
    if (operation === SHADOW_OP.clean) {
      this.#dirty.clear();
      this.#staleCount = 0;
    }
    return ok(frameCount);
  }

  pageTypes(domid: number, count: number, frames: BigUint64Array): CallResult {
    const failed = this.#fails('pageTypes', domid);
    if (failed !== undefined) return failed;
    for (let i = 0; i < count; i++) {
      const frame = frames[i]!;
      frames[i] = frame | (BigInt(this.pages.has(Number(frame)) ? 0 : XTAB) << 28n);
    }
    return ok(0);
  }

  hvmContext(domid: number, into: Uint8Array | null): CallResult {
    into?.fill(0xc0);
    return this.#fails('hvmContext', domid) ?? ok(40);
  }

  hvmParam(domid: number, index: number, into: BigUint64Array): CallResult {
    into[0] = this.params.get(index) ?? (index === 36 ? 0n : BigInt(index) * 0x1000n);
    return this.#fails('hvmParam', domid) ?? ok(0);
  }

  grantVersion(domid: number): CallResult {
    return this.#fails('grantVersion', domid) ?? ok(this.grantTableVersion);
  }

  grantFrames(domid: number): CallResult {
    return this.#fails('grantFrames', domid) ?? ok(1);
  }

  readGrants(domid: number, part: number, into: Uint8Array): CallResult {
    into.set(part === GRANT_TABLE.entries ? this.grants : this.grantStatus);
    return this.#fails('readGrants', domid) ?? ok(1);
  }

  tscInfo(
    domid: number,
    mode: Uint32Array,
    elapsedNs: BigUint64Array,
    khz: Uint32Array,
    incarnation: Uint32Array,
  ): CallResult {
    mode[0] = 0;
    elapsedNs[0] = 123_456_789n;
    khz[0] = 2_596_120;
    incarnation[0] = 1;
    return this.#fails('tscInfo', domid) ?? ok(0);
  }

  cpuPolicySize(leaves: Uint32Array, msrs: Uint32Array): CallResult {
    leaves[0] = 8;
    msrs[0] = 4;
    return ok(0);
  }

  cpuPolicy(
    domid: number,
    leaves: Uint8Array,
    leafCount: Uint32Array,
    msrs: Uint8Array,
    msrCount: Uint32Array,
  ): CallResult {
    leaves.fill(0x1e);
    msrs.fill(0x2e);
    leafCount[0] = 2;
    msrCount[0] = 1;
    return this.#fails('cpuPolicy', domid) ?? ok(0);
  }

  guestWidth(domid: number, into: Uint32Array): CallResult {
    into[0] = 8;
    return this.#fails('guestWidth', domid) ?? ok(0);
  }

  vcpuContext(domid: number, _vcpu: number, into: Uint8Array): CallResult {
    into.fill(0);
    return this.#fails('vcpuContext', domid) ?? ok(0);
  }

  domctl(struct: Uint8Array): CallResult {
    return this.#fails('domctl', struct[8]!) ?? { value: -1, errno: EINVAL };
  }

  shutdown(domid: number, reason: number): CallResult {
    const failed = this.#fails('shutdown', domid);
    if (failed !== undefined) return failed;
    this.shutdowns.push(reason);
    if (this.suspends) this.isSuspended = true;
    return ok(0);
  }

  resume(domid: number): CallResult {
    const failed = this.#fails('resume', domid);
    if (failed !== undefined) return failed;
    this.isSuspended = false;
    this.resumed.push(domid);
    return ok(0);
  }

  readPages(
    domid: number,
    count: number,
    frames: BigUint64Array,
    errors: Int32Array,
    into: Uint8Array,
  ): CallResult {
    const failed = this.#fails('readPages', domid);
    if (failed !== undefined) return failed;
    for (let i = 0; i < count; i++) {
      const page = this.pages.get(Number(frames[i]));
      errors[i] = page === undefined ? -EINVAL : 0;
      if (page !== undefined) into.set(page, i * PAGE);
    }
    return ok(count);
  }

  storeRead(path: string): Uint8Array | null {
    const value = this.store.get(path);
    return value === undefined ? null : Buffer.from(value, 'latin1');
  }

  storeWrite(path: string, value: Uint8Array): boolean {
    this.store.set(path, Buffer.from(value).toString('latin1'));
    if (path.endsWith('/control/shutdown') && this.takesRequest) {
      this.store.set(path, '');
      if (this.suspends) this.isSuspended = true;
    }
    return true;
  }

  storeReplace(path: string, expected: string, value: string): boolean {
    if (this.store.get(path) !== expected) return false;
    this.store.set(path, value);
    return true;
  }

  storeResume(): boolean {
    return true;
  }

  close(): void {
    this.isClosed = true;
  }

  #fails(call: keyof LibraryCalls, domid: number): CallResult | undefined {
    if (this.isClosed) throw new CheckpointError('VM_GONE', 'the connection to the hypervisor is closed');
    if (this.isGone || domid !== this.domid) return { value: -1, errno: ESRCH };
    if (this.fault?.call === call) return { value: -1, errno: this.fault.errno };
    return undefined;
  }
}

function ok(value: number): CallResult {
  return { value, errno: 0 };
}
