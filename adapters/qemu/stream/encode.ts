/** Parts of a migration stream as bytes: what a whole stream and a postcopy source have in common. */

import { CheckpointError } from '../../../src/errors.js';
import type { MemoryLayout, MemoryRegion } from '../../../src/hypervisor/memory-layout.js';
import {
  RAM_FLAG,
  RAM_SECTION_NAME,
  RAM_SECTION_VERSION,
  SECTION,
  SECTION_HEADER_BYTES,
  STREAM_MAGIC,
  STREAM_VERSION,
} from './format.js';

/** Far above the registration numbers that QEMU gives its own sections, so never one of the spliced ones. */
export const RAM_SECTION_ID = 0x00ffff00;

/** Header and configuration. */
export function streamHead(machineType: string): Buffer {
  return Buffer.concat([
    u32(STREAM_MAGIC),
    u32(STREAM_VERSION),
    Buffer.from([SECTION.CONFIGURATION]),
    u32(Buffer.byteLength(machineType)),
    Buffer.from(machineType),
  ]);
}

/** The section that lists the blocks. */
export function ramStart(layout: MemoryLayout): Buffer {
  const name = Buffer.from(RAM_SECTION_NAME);
  const head = Buffer.alloc(SECTION_HEADER_BYTES + name.length);
  head.writeUInt8(SECTION.START, 0);
  head.writeUInt32BE(RAM_SECTION_ID, 1);
  head.writeUInt8(name.length, 5);
  name.copy(head, 6);
  head.writeUInt32BE(RAM_SECTION_VERSION, 6 + name.length + 4);
  const blocks = layout.regions.flatMap((region) => [blockName(region), u64(region.sizeBytes)]);
  return Buffer.concat([
    head,
    u64(layout.sizeBytes + RAM_FLAG.MEM_SIZE),
    ...blocks,
    u64(RAM_FLAG.EOS),
    footer(RAM_SECTION_ID),
  ]);
}

/** @throws STREAM_MALFORMED */
export function blockName(region: MemoryRegion): Buffer {
  const name = Buffer.from(region.id);
  if (name.length === 0 || name.length > 255) {
    throw new CheckpointError('STREAM_MALFORMED', `"${region.id}" cannot be the name of a RAM block`);
  }
  return Buffer.concat([Buffer.from([name.length]), name]);
}

/** Of a section that began before: PART or END. */
export function sectionStart(type: number, id: number): Buffer {
  return Buffer.concat([Buffer.from([type]), u32(id)]);
}

export function footer(id: number): Buffer {
  return sectionStart(SECTION.FOOTER, id);
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  writeU64(bytes, value, 0);
  return bytes;
}

/** `value` is a safe integer; two 32-bit writes are several times faster than one of a bigint. */
export function writeU64(into: Buffer, value: number, at: number): number {
  into.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  return into.writeUInt32BE(value % 2 ** 32, at + 4);
}
