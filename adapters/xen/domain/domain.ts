/**
 * Reads one domain through the library calls: state, memory map, state records. No waiting and no policy in
 * here.
 */

import { CheckpointError } from '../../../src/errors.js';
import { errnoName, type CallResult } from '../../../src/ffi/libc.js';
import { MAX_BATCH_PAGES, type LibraryCalls } from '../ffi/library.js';

/** Bits of `flags` in struct xen_domctl_getdomaininfo (XEN_DOMINF_*, domctl.h). */
const FLAG = { dying: 1, hvm: 2, shutdown: 4, paused: 8, hap: 256 } as const;
const SHUTDOWN_SHIFT = 16;
const SHUTDOWN_MASK = 255;
/** SHUTDOWN_suspend (sched.h). */
export const REASON_SUSPEND = 2;

/**
 * Page types from here on have no contents of their own: XEN_DOMCTL_PFINFO_BROKEN, XALLOC and XTAB
 * (domctl.h).
 */
const FIRST_ABSENT_TYPE = 13;
const TYPE_SHIFT = 28;

export interface DomainInfo {
  readonly domid: number;
  /** Lower case, with hyphens. */
  readonly uuid: string;
  readonly isDying: boolean;
  /** HVM or PVH: the hypervisor translates guest frames. */
  readonly isHvm: boolean;
  readonly hasHap: boolean;
  readonly isPaused: boolean;
  readonly isSuspended: boolean;
  /** Shut down for another reason than a suspend: off, rebooting, crashed. */
  readonly isDown: boolean;
  readonly totalPages: number;
  readonly maxPages: number;
  readonly sharedInfoFrame: bigint;
  readonly vcpuCount: number;
}

export class XenDomain {
  readonly domid: number;
  readonly calls: LibraryCalls;
  readonly #info: Uint8Array;
  readonly #frames = new BigUint64Array(MAX_BATCH_PAGES);
  /** The low halves of `#frames`: page numbers in, types out, without a bigint for each. */
  readonly #halves = new Uint32Array(this.#frames.buffer);

  constructor(calls: LibraryCalls, domid: number) {
    this.calls = calls;
    this.domid = domid;
    this.#info = new Uint8Array(calls.table.domainInfo.sizeBytes);
  }

  /** @throws VM_GONE */
  info(): DomainInfo {
    const got = this.calls.domainInfo(this.domid, 1, this.#info);
    const { domainInfo: at } = this.calls.table;
    const view = new DataView(this.#info.buffer);
    if (got.value < 1 || view.getUint16(at.domain, true) !== this.domid) throw this.#gone();
    const flags = view.getUint32(at.flags, true);
    const isShutdown = (flags & FLAG.shutdown) !== 0;
    const reason = (flags >>> SHUTDOWN_SHIFT) & SHUTDOWN_MASK;
    return {
      domid: this.domid,
      uuid: uuidText(this.#info.subarray(at.handle, at.handle + 16)),
      isDying: (flags & FLAG.dying) !== 0,
      isHvm: (flags & FLAG.hvm) !== 0,
      hasHap: (flags & FLAG.hap) !== 0,
      isPaused: (flags & FLAG.paused) !== 0,
      isSuspended: isShutdown && reason === REASON_SUSPEND,
      isDown: isShutdown && reason !== REASON_SUSPEND,
      totalPages: Number(view.getBigUint64(at.totPages, true)),
      maxPages: Number(view.getBigUint64(at.maxPages, true)),
      sharedInfoFrame: view.getBigUint64(at.sharedInfoFrame, true),
      vcpuCount: view.getUint32(at.maxVcpuId, true) + 1,
    };
  }

  /** The highest guest frame, and one more. @throws VM_GONE, FFI_FAILED */
  frameCount(): number {
    const count = new BigUint64Array(1);
    this.check(this.calls.frameCount(this.domid, count), 'asking for the size of guest memory');
    return Number(count[0]);
  }

  /**
   * Calls `visit` with each stretch of frames in [first, first + count) that have memory of the guest behind
   * them. Pages that belong to the hypervisor (shared info, grant table) and holes are left out.
   * @throws VM_GONE, FFI_FAILED
   */
  visitPresent(first: number, count: number, visit: (frame: number, frameCount: number) => void): void {
    let from = -1;
    const end = first + count;
    for (let at = first; at < end; at += MAX_BATCH_PAGES) {
      const size = Math.min(MAX_BATCH_PAGES, end - at);
      for (let i = 0; i < size; i++) {
        this.#halves[i * 2] = at + i;
        this.#halves[i * 2 + 1] = 0;
      }
      this.check(this.calls.pageTypes(this.domid, size, this.#frames), 'asking for page types');
      for (let i = 0; i < size; i++) {
        const isPresent = this.#halves[i * 2]! >>> TYPE_SHIFT < FIRST_ABSENT_TYPE;
        if (isPresent && from < 0) from = at + i;
        if (!isPresent && from >= 0) {
          visit(from, at + i - from);
          from = -1;
        }
      }
    }
    if (from >= 0) visit(from, end - from);
  }

  /** @throws VM_GONE, VM_PERMISSION, FFI_FAILED naming what was tried */
  check(result: CallResult, what: string): CallResult {
    if (result.value >= 0) return result;
    const name = errnoName(result.errno);
    if (name === 'ESRCH') throw this.#gone();
    throw new CheckpointError(
      name === 'EPERM' || name === 'EACCES' ? 'VM_PERMISSION' : 'FFI_FAILED',
      `${what} of domain ${this.domid}: ${name}`,
      { detail: { domid: this.domid, errno: name } },
    );
  }

  #gone(): CheckpointError {
    return new CheckpointError('VM_GONE', `domain ${this.domid} has ended`);
  }
}

function uuidText(bytes: Uint8Array): string {
  const hex = Buffer.from(bytes).toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}
