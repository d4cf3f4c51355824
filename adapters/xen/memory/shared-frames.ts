/**
 * Guest frames that somebody outside of the guest can write to at this moment: those that it granted to a
 * backend which has them mapped for writing (rings of disks and network interfaces, buffers of requests under
 * way, persistent grants), and the rings of console and xenstore.
 *
 * The hypervisor sets a frame's dirty bit when such a mapping is taken down, and with each grant copy; what
 * is written through a mapping that stays sets no bit. So a checkpoint counts every frame that is mapped for
 * writing as dirty. One that was unmapped since has its bit. The hypervisor keeps GTF_writing set in the
 * guest's own grant table for as long as there is a mapping.
 *
 * Sources: xen/common/grant_table.c (unmap_common, gnttab_copy_buf), xen/include/public/grant_table.h,
 * hvm/params.h.
 */

import type { XenDomain } from '../domain/domain.js';
import { GRANT_TABLE } from '../ffi/library.js';

const PAGE_BYTES = 4096;
const STORE_RING_PARAM = 1;
const CONSOLE_RING_PARAM = 17;

/**
 * grant_entry_header.flags: the low bits say what the entry is, GTF_permit_access is memory of the guest
 * itself.
 */
const TYPE_MASK = 3;
const PERMIT_ACCESS = 1;
const WRITING = 1 << 4;

const V1_ENTRY_BYTES = 8;
const V1_FRAME_AT = 4;
const V2_ENTRY_BYTES = 16;
const V2_FRAME_AT = 8;
const STATUS_BYTES = 2;

export interface GrantTable {
  readonly version: 1 | 2;
  /** grant_entry_v1_t or grant_entry_v2_t, one after the other. */
  readonly entries: Uint8Array;
  /** Version 2 only: u16 for each entry. */
  readonly status: Uint8Array;
}

/**
 * The frames come in no order; one may be named more than once.
 * @throws VM_GONE, FFI_FAILED, also for a version of the table that is not known
 */
export function framesSharedForWriting(domain: XenDomain): readonly number[] {
  return [...ringFrames(domain), ...grantedForWriting(readGrantTable(domain))];
}

/** Frames of entries that are mapped for writing. */
export function grantedForWriting(table: GrantTable): readonly number[] {
  return grantedFrames(table).flatMap(({ frame, isWritten }) => (isWritten ? [frame] : []));
}

export interface GrantedFrame {
  readonly frame: number;
  /** Somebody has it mapped for writing. */
  readonly isWritten: boolean;
}

/** Frames of all entries that let somebody at memory of the guest, mapped or not. */
export function grantedFrames({ version, entries, status }: GrantTable): readonly GrantedFrame[] {
  const view = new DataView(entries.buffer, entries.byteOffset, entries.byteLength);
  const states = new DataView(status.buffer, status.byteOffset, status.byteLength);
  const isV2 = version === 2;
  const entryBytes = isV2 ? V2_ENTRY_BYTES : V1_ENTRY_BYTES;
  const found: GrantedFrame[] = [];
  for (let i = 0; (i + 1) * entryBytes <= entries.length; i++) {
    const at = i * entryBytes;
    const flags = view.getUint16(at, true);
    if ((flags & TYPE_MASK) !== PERMIT_ACCESS) continue;
    found.push({
      frame: isV2
        ? Number(view.getBigUint64(at + V2_FRAME_AT, true))
        : view.getUint32(at + V1_FRAME_AT, true),
      isWritten: ((isV2 ? states.getUint16(i * STATUS_BYTES, true) : flags) & WRITING) !== 0,
    });
  }
  return found;
}

/** @throws VM_GONE, FFI_FAILED, also for a version of the table that is not known */
export function readGrantTable(domain: XenDomain): GrantTable {
  const { calls, domid } = domain;
  const version = domain.check(calls.grantVersion(domid), 'asking for the version of the grant table').value;
  if (version !== 1 && version !== 2) {
    domain.check({ value: -1, errno: EOPNOTSUPP }, `reading a grant table of version ${version}`);
  }
  const frames = domain.check(calls.grantFrames(domid), 'asking for the size of the grant table').value;
  const entries = new Uint8Array(frames * PAGE_BYTES);
  const isV2 = version === 2;
  const statusBytes = isV2 ? (entries.length / V2_ENTRY_BYTES) * STATUS_BYTES : 0;
  const status = new Uint8Array(Math.ceil(statusBytes / PAGE_BYTES) * PAGE_BYTES);
  readInto(domain, GRANT_TABLE.entries, entries);
  readInto(domain, GRANT_TABLE.status, status);
  return { version: isV2 ? 2 : 1, entries, status };
}

const EOPNOTSUPP = 95;

function readInto(domain: XenDomain, part: number, into: Uint8Array): void {
  if (into.length === 0) return;
  domain.check(domain.calls.readGrants(domain.domid, part, into), 'mapping the grant table');
}

/** Granted like the others on a guest that libxl built; named here so that nothing depends on it. */
function ringFrames(domain: XenDomain): readonly number[] {
  const value = new BigUint64Array(1);
  return [STORE_RING_PARAM, CONSOLE_RING_PARAM].flatMap((param) => {
    domain.check(domain.calls.hvmParam(domain.domid, param, value), `reading HVM parameter ${param}`);
    return value[0] === 0n ? [] : [Number(value[0])];
  });
}
