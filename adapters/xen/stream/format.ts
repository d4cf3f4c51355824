/**
 * The file that `xl save` writes: numbers and magic bytes of its three layers.
 *
 *     xl      "Xen saved domain, xl format", flags, length, the domain's configuration as JSON
 *     libxl   "LibxlFmt", version 2 (big-endian); records; one, LIBXC_CONTEXT, stands for the layer below
 *     libxc   "XENF", version 3; domain header; records, little-endian, bodies padded to 8 bytes
 *
 * Sources: docs/specs/libxl-migration-stream.pandoc, docs/specs/libxc-migration-stream.pandoc, tools/xl/xl.h
 * of Xen.
 */

/** savefileheader of tools/xl/xl.h: 32 bytes, the string without its final NUL. */
export const XL_MAGIC = Buffer.from('Xen saved domain, xl format\n \0 \r', 'latin1');
export const XL_BYTE_ORDER = 0x01020304;
/** XL_MANDATORY_FLAG_JSON | XL_MANDATORY_FLAG_STREAMv2 */
export const XL_MANDATORY_FLAGS = 3;
export const XL_HEADER_BYTES = 48;

export const LIBXL_IDENT = Buffer.from('LibxlFmt', 'latin1');
export const LIBXL_VERSION = 2;
export const LIBXL_RECORD = {
  end: 0,
  libxcContext: 1,
  emulatorXenstore: 2,
  emulatorContext: 3,
  checkpointEnd: 4,
} as const;

/**
 * Ahead of the body of both emulator records: u32 id, u32 index. The id is that of a QEMU of today, not
 * qemu-xen-traditional.
 */
export const EMULATOR_HEADER = { sizeBytes: 8, qemuUpstream: 2 } as const;

export const LIBXC_MARKER_BYTES = 8;
/** "XENF" */
export const LIBXC_ID = 0x58454e46;
export const LIBXC_VERSION = 3;
export const GUEST_TYPE = { pv: 1, hvm: 2 } as const;
export type GuestType = (typeof GUEST_TYPE)[keyof typeof GUEST_TYPE];

export const LIBXC_RECORD = {
  end: 0,
  pageData: 1,
  pvInfo: 2,
  pvFrames: 3,
  vcpuBasic: 4,
  vcpuExtended: 5,
  vcpuXsave: 6,
  sharedInfo: 7,
  tscInfo: 8,
  hvmContext: 9,
  hvmParams: 0xa,
  vcpuMsrs: 0xc,
  checkpoint: 0xe,
  staticDataEnd: 0x10,
  cpuidPolicy: 0x11,
  msrPolicy: 0x12,
} as const;

/** Records whose bit 31 is set may be skipped by a reader that does not know them. */
export const OPTIONAL_RECORD = 0x8000_0000;

/** Pages in one PAGE_DATA record: libxc writes no more. */
export const MAX_RECORD_PAGES = 1024;
/** Frames of these types are listed in PAGE_DATA without contents: BROKEN, XALLOC, XTAB. */
export const FIRST_EMPTY_TYPE = 13;

export function padded(lengthBytes: number): number {
  return Math.ceil(lengthBytes / 8) * 8;
}
