/**
 * The calls of Xen's libraries that the adapter makes, as an interface: `bind.ts` implements it with the real
 * libraries, tests with a fake hypervisor.
 *
 * All calls are synchronous. Buffers belong to the caller and are used for the length of the call only.
 */

import type { CallResult } from '../../../src/ffi/libc.js';
import type { VersionTable, XenVersion } from './versions.js';

/** Pages in one call of `pageTypes` and `readPages`: libxc takes no more. */
export const MAX_BATCH_PAGES = 1024;

/** Operations of `shadowControl` and `logDirty` (XEN_DOMCTL_SHADOW_OP_*, domctl.h). */
export const SHADOW_OP = { off: 0, enableLogDirty: 2, clean: 11, peek: 12 } as const;
/** XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL: the domain is stopped and stays so. */
export const LOGDIRTY_FINAL = 1;

/** Parts of a grant table (XENMEM_resource_grant_table_id_*, memory.h). */
export const GRANT_TABLE = { entries: 0, status: 1 } as const;

/** `LibraryCalls.logDirty` when the hypervisor covered another number of pages than asked for. */
export const SHORT_BITMAP = -2;

export interface LibraryCalls {
  readonly version: XenVersion;
  readonly table: VersionTable;

  /** xc_domain_getinfolist: fills `into` with up to `max` structures. @returns how many */
  domainInfo(first: number, max: number, into: Uint8Array): CallResult;
  /** xc_domain_nr_gpfns: one more than the highest guest frame number. */
  frameCount(domid: number, into: BigUint64Array): CallResult;
  /** xc_shadow_control. errno EINVAL (22) for enabling what is on, EOPNOTSUPP (95) where it cannot be had. */
  shadowControl(domid: number, operation: number): CallResult;
  /**
   * xc_logdirty_control with `clean` or `peek`.
   * @param into ceil(frameCount / 8) bytes: bit g is guest frame g
   * @param stats receives fault_count and dirty_count
   * @returns frameCount, or SHORT_BITMAP
   */
  logDirty(
    domid: number,
    operation: number,
    frameCount: number,
    mode: number,
    into: Uint8Array,
    stats: Uint32Array,
  ): CallResult;
  /** xc_get_pfn_type_batch: `frames` holds frame numbers and receives type << 28 beside each. */
  pageTypes(domid: number, count: number, frames: BigUint64Array): CallResult;
  /** xc_domain_hvm_getcontext: null asks for the size. @returns bytes */
  hvmContext(domid: number, into: Uint8Array | null): CallResult;
  /** xc_hvm_param_get */
  hvmParam(domid: number, index: number, into: BigUint64Array): CallResult;
  /** xc_gnttab_get_version. @returns the version of the entries */
  grantVersion(domid: number): CallResult;
  /** xc_gnttab_query_size. @returns how many frames the table has now */
  grantFrames(domid: number): CallResult;
  /**
   * xenforeignmemory_map_resource, copy, unmap, from the first frame of a part of the grant table.
   * @param part of GRANT_TABLE
   * @param into whole frames, no more than the table has: asking for more makes it grow
   */
  readGrants(domid: number, part: number, into: Uint8Array): CallResult;
  /** xc_domain_get_tsc_info */
  tscInfo(
    domid: number,
    mode: Uint32Array,
    elapsedNs: BigUint64Array,
    khz: Uint32Array,
    incarnation: Uint32Array,
  ): CallResult;
  /** xc_cpu_policy_get_size: the most leaves and MSRs there can be. */
  cpuPolicySize(leaves: Uint32Array, msrs: Uint32Array): CallResult;
  /**
   * xc_cpu_policy_get_domain and _serialise: 24 bytes a leaf, 16 an MSR; the counts come back in `leafCount`
   * and `msrCount`.
   */
  cpuPolicy(
    domid: number,
    leaves: Uint8Array,
    leafCount: Uint32Array,
    msrs: Uint8Array,
    msrCount: Uint32Array,
  ): CallResult;
  /** xc_domain_get_guest_width: 4 or 8 bytes (PV). */
  guestWidth(domid: number, into: Uint32Array): CallResult;
  /** xc_vcpu_getcontext: vcpu_guest_context_any_t, 5168 bytes on x86-64 (PV). */
  vcpuContext(domid: number, vcpu: number, into: Uint8Array): CallResult;
  /**
   * xc_domctl with a struct xen_domctl of 144 bytes, which receives the answer.
   * @param buffer memory for the hypervisor to fill: its address is put at `addressAt`, its contents are
   *   copied to `into`
   */
  domctl(struct: Uint8Array, buffer?: { readonly addressAt: number; readonly into: Uint8Array }): CallResult;
  /** xc_domain_shutdown: stops all processors where they are. */
  shutdown(domid: number, reason: number): CallResult;
  /** xc_domain_resume with fast = 1: the guest's suspend call returns "cancelled". */
  resume(domid: number): CallResult;
  /**
   * xenforeignmemory_map, copy, unmap of `count` frames, at most MAX_BATCH_PAGES. Frames that cannot be
   * mapped get their error in `errors` (negative errno) and leave their page of `into` as it is.
   */
  readPages(
    domid: number,
    count: number,
    frames: BigUint64Array,
    errors: Int32Array,
    into: Uint8Array,
  ): CallResult;

  /** xs_read. Null when there is no such node; caller owns the bytes. */
  storeRead(path: string): Uint8Array | null;
  /** xs_write. @returns false when it was refused */
  storeWrite(path: string, value: Uint8Array): boolean;
  /**
   * Writes `value` if the node holds `expected` at that moment, in a transaction.
   * @returns false when it holds something else
   */
  storeReplace(path: string, expected: string, value: string): boolean;
  /** xs_resume_domain: xenstored forgets that the domain was shut down. */
  storeResume(domid: number): boolean;

  close(): void;
}
