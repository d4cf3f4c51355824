/**
 * Commands of a postcopy source to the destination. All integers are big-endian.
 *
 *     command = 08 | u16 command | u16 length | payload
 *
 * The whole of what a source sends, in order:
 *
 *     head | OPEN_RETURN_PATH | POSTCOPY_ADVISE | START ram: block list | RAM_DISCARD for each block
 *     | PACKAGED [ LISTEN | device sections | PING | RUN ] | PART ram: page records ... EOS, footer | EOF
 *
 * At least one RAM_DISCARD must stand before LISTEN: without it, LISTEN is undone by the discard that the destination
 * makes by itself, and it loads pages as if it had not begun to listen. Source: QEMU migration/savevm.c,
 * migration/postcopy-ram.c (7.2 to 10.2).
 */

import { CheckpointError } from '../../../src/errors.js';
import type { MemoryLayout, MemoryRegion } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import { blockName, ramStart, sectionStart, RAM_SECTION_ID, streamHead, u32, u64 } from '../stream/encode.js';
import { SECTION } from '../stream/format.js';

/** enum qemu_vm_cmd */
const COMMAND = {
  OPEN_RETURN_PATH: 1,
  PING: 2,
  POSTCOPY_ADVISE: 3,
  POSTCOPY_LISTEN: 4,
  POSTCOPY_RUN: 5,
  POSTCOPY_RAM_DISCARD: 6,
  PACKAGED: 7,
  POSTCOPY_RESUME: 9,
  RECV_BITMAP: 10,
} as const;

/** MAX_VM_CMD_PACKAGED_SIZE: a destination refuses more. */
const MAX_PACKAGE_BYTES = 1 << 24;

/** Value of the PING that stands right before RUN. */
export const RUN_PING = 3;

/** Up to the point from which the destination asks for pages by itself. */
export function opening(machineType: string, layout: MemoryLayout): Buffer {
  const pageSize = u64(PAGE_SIZE_BYTES);
  return Buffer.concat([
    streamHead(machineType),
    command(COMMAND.OPEN_RETURN_PATH),
    // Page sizes of all blocks, or-ed together, then that of the target.
    command(COMMAND.POSTCOPY_ADVISE, pageSize, pageSize),
    ramStart(layout),
    ...layout.regions.map((region) => discardAll(region)),
  ]);
}

/**
 * Device state, and what has the VM run on it. The destination reads it in one piece, so that it can ask for pages
 * while it loads it.
 * @throws VM_UNSUPPORTED for more device state than a destination takes
 */
export function runPackage(deviceSections: Uint8Array): Buffer {
  const content = Buffer.concat([
    command(COMMAND.POSTCOPY_LISTEN),
    deviceSections,
    command(COMMAND.PING, u32(RUN_PING)),
    command(COMMAND.POSTCOPY_RUN),
  ]);
  if (content.length > MAX_PACKAGE_BYTES) {
    throw new CheckpointError(
      'VM_UNSUPPORTED',
      `${content.length} bytes of device state are more than QEMU takes before the memory (${MAX_PACKAGE_BYTES})`,
      { hint: 'restore it without --lazy' },
    );
  }
  return Buffer.concat([command(COMMAND.PACKAGED, u32(content.length)), content]);
}

/** Begins the one section in which all pages come. */
export function pagesStart(): Buffer {
  return sectionStart(SECTION.PART, RAM_SECTION_ID);
}

/** First of what a new source says to a destination that lost the one before: it asks what has arrived. */
export function reopening(layout: MemoryLayout): Buffer {
  const questions = layout.regions.map((region) => command(COMMAND.RECV_BITMAP, blockName(region)));
  return Buffer.concat([command(COMMAND.OPEN_RETURN_PATH), ...questions]);
}

/** Has the destination go on, once it has said what it has. */
export function resuming(): Buffer {
  return command(COMMAND.POSTCOPY_RESUME);
}

/** u8 version 0 | u8 length, name | 00 | u64 start, u64 length */
function discardAll(region: MemoryRegion): Buffer {
  const none = Buffer.of(0);
  return command(COMMAND.POSTCOPY_RAM_DISCARD, none, blockName(region), none, u64(0), u64(region.sizeBytes));
}

function command(number: number, ...payload: readonly Uint8Array[]): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt8(SECTION.COMMAND, 0);
  head.writeUInt16BE(number, 1);
  head.writeUInt16BE(
    payload.reduce((sum, { length }) => sum + length, 0),
    3,
  );
  return Buffer.concat([head, ...payload]);
}
