/**
 * Names and numbers of QEMU's migration stream, version 3. All integers are big-endian.
 *
 *     file    = "QEVM" | u32 3 | config | section* | 00 EOF | [vmdesc]
 *     config  = 07 | u32 length | machine type, no NUL | subsection*
 *     section = 01 START or 04 FULL | u32 id | u8 length, name | u32 instance | u32 version | body | footer
 *             | 02 PART  or 03 END  | u32 id | body | footer
 *     footer  = 7e | u32 id
 *     command = 08 | u16 command | u16 length | payload
 *     vmdesc  = 06 | u32 length | JSON
 *
 * Source: QEMU migration/savevm.h, migration/savevm.c, migration/ram.c (7.2 to 10.2).
 */

/** "QEVM" */
export const STREAM_MAGIC = 0x5145564d;
export const STREAM_VERSION = 3;

export const SECTION = {
  EOF: 0x00,
  START: 0x01,
  PART: 0x02,
  END: 0x03,
  FULL: 0x04,
  SUBSECTION: 0x05,
  VMDESC: 0x06,
  CONFIGURATION: 0x07,
  COMMAND: 0x08,
  FOOTER: 0x7e,
} as const;

/** Low bits of the u64 that starts every record of a "ram" section; the rest is the offset in the block. */
export const RAM_FLAG = {
  /** A page filled with one byte, which follows; QEMU since 2.x sends 0 only. */
  ZERO: 0x002,
  /** The block list; only in START, where the other bits hold the total size. */
  MEM_SIZE: 0x004,
  /** 4096 bytes follow. */
  PAGE: 0x008,
  /** End of this section's body. */
  EOS: 0x010,
  /** Modifier: same block as the record before, so its name is left out. */
  CONTINUE: 0x020,
  XBZRLE: 0x040,
  HOOK: 0x080,
  COMPRESS_PAGE: 0x100,
  MULTIFD_FLUSH: 0x200,
} as const;

export const RAM_FLAGS_MASK = 0xfff;
export const RAM_SECTION_NAME = 'ram';
export const RAM_SECTION_VERSION = 4;

/** Magic and version: where the sections of a device-state blob start. */
export const STREAM_HEADER_BYTES = 8;

/** Type, id, name length, instance and version around a name. */
export const SECTION_HEADER_BYTES = 1 + 4 + 1 + 4 + 4;
export const FOOTER_BYTES = 5;
