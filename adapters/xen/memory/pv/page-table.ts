/**
 * Page tables of a PV guest hold machine frame numbers, which mean nothing on another day: in a checkpoint
 * they hold the guest's own (pseudo-physical) frame numbers instead, as in the stream of `xl save`, and a
 * restore puts the machine's of that day in.
 *
 * 64-bit guests only. Sources: docs/specs/libxc-migration-stream.pandoc (PAGE_DATA),
 * xen/include/public/arch-x86/xen-x86_64.h.
 */

import { CheckpointError } from '../../../../src/errors.js';

/** XEN_DOMCTL_PFINFO_LTABTYPE_MASK: levels 1 to 4; bit 3 says "pinned". */
const LEVEL_MASK = 7;
const FIRST_OTHER_TYPE = 13;
const ENTRIES = 512;
const PRESENT = 1;
/** Slots of the top level that belong to the hypervisor (HYPERVISOR_VIRT_START .. _END). */
const XEN_SLOTS = { first: 256, last: 271 } as const;
/** Bits 12 to 51 of an entry. */
const FRAME_LOW_SHIFT = 12;
const FRAME_HIGH_MASK = 0x000f_ffff;

/** 1 to 4 for a page table of that level, 0 for any other page. */
export function tableLevel(type: number): number {
  if (type >= FIRST_OTHER_TYPE) return 0;
  const level = type & LEVEL_MASK;
  return level <= 4 ? level : 0;
}

/**
 * Rewrites the entries of the page in place.
 * @param page 4096 bytes, a page table of that level; aligned to 4
 * @param frameOf the guest's frame for a machine frame, undefined when the guest has no such page
 * @throws VM_MEMORY_READ for an entry that leads out of the guest
 */
export function toGuestFrames(
  page: Uint8Array,
  level: number,
  frameOf: (machineFrame: number) => number | undefined,
): void {
  const halves = new Uint32Array(page.buffer, page.byteOffset, ENTRIES * 2);
  for (let slot = 0; slot < ENTRIES; slot++) {
    if (level === 4 && slot >= XEN_SLOTS.first && slot <= XEN_SLOTS.last) {
      halves[slot * 2] = 0;
      halves[slot * 2 + 1] = 0;
      continue;
    }
    const low = halves[slot * 2]!;
    if ((low & PRESENT) === 0) continue;
    const high = halves[slot * 2 + 1]!;
    const machineFrame = (low >>> FRAME_LOW_SHIFT) + (high & FRAME_HIGH_MASK) * 2 ** 20;
    const frame = frameOf(machineFrame);
    if (frame === undefined) {
      throw new CheckpointError(
        'VM_MEMORY_READ',
        `a page table of level ${level} names the machine frame 0x${machineFrame.toString(16)}, which is not the guest's`,
        { retryable: true },
      );
    }
    halves[slot * 2] = ((low & 0xfff) | (frame << FRAME_LOW_SHIFT)) >>> 0;
    halves[slot * 2 + 1] = ((high & ~FRAME_HIGH_MASK) | Math.floor(frame / 2 ** 20)) >>> 0;
  }
}
