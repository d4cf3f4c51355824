/**
 * The releases of Xen that the binding knows, and the layouts that go with each.
 *
 * libxenctrl and libxenguest are unstable: their soname carries the release, and a library of another release
 * than the running hypervisor is turned away by the domctl interface version. So the release of the
 * hypervisor decides which library is loaded and which table is used, and a release without a table is
 * refused instead of guessed at.
 *
 * Sources: xen/include/public/domctl.h, tools/include/xenctrl.h, tools/include/xenguest.h of each release's
 * stable branch.
 */

import { CheckpointError } from '../../../src/errors.js';

export interface XenVersion {
  readonly major: number;
  readonly minor: number;
}

/** Offsets in bytes in struct xen_domctl_getdomaininfo. */
export interface DomainInfoLayout {
  readonly sizeBytes: number;
  readonly domain: number;
  readonly flags: number;
  readonly totPages: number;
  readonly maxPages: number;
  readonly sharedInfoFrame: number;
  readonly maxVcpuId: number;
  readonly handle: number;
}

/** Offsets in bytes in struct xc_hypercall_buffer. */
export interface HypercallBufferLayout {
  readonly sizeBytes: number;
  readonly userBuffer: number;
}

/** Offsets in bytes in struct xc_domain_meminfo (PV guests). */
export interface MemInfoLayout {
  readonly sizeBytes: number;
  readonly ptLevels: number;
  readonly guestWidth: number;
  readonly pfnType: number;
  readonly p2mTable: number;
  readonly p2mSize: number;
}

export interface VersionTable {
  /** XEN_DOMCTL_INTERFACE_VERSION, filled in by the library and checked by the hypervisor. */
  readonly domctlVersion: number;
  readonly domainInfo: DomainInfoLayout;
  readonly hypercallBuffer: HypercallBufferLayout;
  readonly memInfo: MemInfoLayout;
}

const layouts = {
  domainInfo: {
    sizeBytes: 112,
    domain: 0,
    flags: 4,
    totPages: 8,
    maxPages: 16,
    sharedInfoFrame: 48,
    maxVcpuId: 68,
    handle: 76,
  },
  hypercallBuffer: { sizeBytes: 40, userBuffer: 24 },
  memInfo: { sizeBytes: 40, ptLevels: 0, guestWidth: 4, pfnType: 8, p2mTable: 16, p2mSize: 24 },
} as const;

/** The structures used here did not change from 4.16 to 4.20; the interface version did. */
export const VERSION_TABLES: Readonly<Record<string, VersionTable>> = {
  '4.16': { domctlVersion: 0x14, ...layouts },
  '4.17': { domctlVersion: 0x15, ...layouts },
  '4.18': { domctlVersion: 0x16, ...layouts },
  '4.19': { domctlVersion: 0x17, ...layouts },
  '4.20': { domctlVersion: 0x17, ...layouts },
};

/** Releases on which the lab has run every scenario of a PVH guest to its end. */
export const PROVEN_RELEASES: readonly string[] = ['4.17'];

export function isProvenRelease({ major, minor }: XenVersion): boolean {
  return PROVEN_RELEASES.includes(`${major}.${minor}`);
}

/** @throws VM_UNSUPPORTED for a release without a table */
export function versionTable({ major, minor }: XenVersion): VersionTable {
  const table = VERSION_TABLES[`${major}.${minor}`];
  if (table !== undefined) return table;
  const known = Object.keys(VERSION_TABLES);
  throw new CheckpointError('VM_UNSUPPORTED', `Xen ${major}.${minor} is not known to this version of Cairn`, {
    hint: `known: ${known[0]} to ${known.at(-1)}`,
    detail: { major, minor },
  });
}

/** Sonames of the libraries of that release; the others have stable interfaces. */
export function libraryNames({ major, minor }: XenVersion): {
  readonly control: string;
  readonly guest: string;
  readonly foreignMemory: string;
  readonly store: string;
} {
  return {
    control: `libxenctrl.so.${major}.${minor}`,
    guest: `libxenguest.so.${major}.${minor}`,
    foreignMemory: 'libxenforeignmemory.so.1',
    store: 'libxenstore.so.4',
  };
}
