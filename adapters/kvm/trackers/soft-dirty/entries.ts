/**
 * Entries of /proc/PID/pagemap, 8 bytes a page (Documentation/admin-guide/mm/pagemap.rst), and what they say
 * about private anonymous memory since the last write of 4 to clear_refs.
 *
 * Bit 55 alone is not enough. Memory that is taken away (a balloon's MADV_DONTNEED) leaves an empty entry
 * without the bit, and a read of it afterwards brings in the kernel's zero page, again without the bit: the
 * page went from data to zero and looks clean. So a page counts as unwritten only if the entry shows a page
 * of its own, or a swap entry, without the bit. The huge zero page can be told and counts as absent, like an
 * empty entry. Swapped pages keep the bit in their swap entry, and a huge page gives its own to each of its
 * parts.
 */

import { readSync } from 'node:fs';

import { CheckpointError, describeError, systemErrorCode } from '../../../../src/errors.js';
import { PAGE_SIZE_BYTES } from '../../../../src/types.js';

/** Bits of the high half of an entry. */
const PRESENT = 1 << 31;
const SWAPPED = 1 << 30;
/** Not anonymous. In private anonymous memory only the huge zero page is that. */
const FILE = 1 << 29;
/** Left by a userfaultfd on a page that is gone; such an entry looks swapped. */
const UFFD_WP = 1 << 25;
/** Mapped once, here. Not set for the zero page, nor for pages that KSM merged. */
const EXCLUSIVE = 1 << 24;
const SOFT_DIRTY = 1 << 23;

const ENTRY_BYTES = 8;
const ENTRIES_PER_READ = 128 * 1024;
/** Shared by all reads of this thread; a read is synchronous and keeps nothing in it. */
const entries = new Uint32Array(ENTRIES_PER_READ * 2);

export type PageFinding = 'written' | 'absent';

/** Undefined for a page that has not been written. `high` is the upper half of its entry. */
export function judgeEntry(high: number): PageFinding | undefined {
  if ((high & (PRESENT | SWAPPED)) === 0) return 'absent';
  if ((high & SOFT_DIRTY) !== 0) return 'written';
  if ((high & (PRESENT | EXCLUSIVE | FILE)) === (PRESENT | FILE)) return 'absent';
  const keepsTheBit = (high & PRESENT) !== 0 ? (high & EXCLUSIVE) !== 0 : (high & UFFD_WP) === 0;
  return keepsTheBit ? undefined : 'written';
}

/**
 * Visits what may have been written and what has no memory in [start, end), as runs. Changes nothing.
 * @throws VM_GONE, TRACKER_FAILED
 */
export function visitFindings(
  pagemap: number,
  start: number,
  end: number,
  visit: (finding: PageFinding, start: number, end: number) => void,
): void {
  for (let at = start; at < end;) {
    const count = readEntries(pagemap, at, Math.min(ENTRIES_PER_READ, (end - at) / PAGE_SIZE_BYTES));
    let from = 0;
    let current = judgeEntry(entries[1]!);
    for (let i = 1; i <= count; i++) {
      const next = i < count ? judgeEntry(entries[i * 2 + 1]!) : undefined;
      if (i < count && next === current) continue;
      if (current !== undefined) visit(current, at + from * PAGE_SIZE_BYTES, at + i * PAGE_SIZE_BYTES);
      from = i;
      current = next;
    }
    at += count * PAGE_SIZE_BYTES;
  }
}

/** Has the page been written since the bits were cleared? @throws VM_GONE, TRACKER_FAILED */
export function isSoftDirty(pagemap: number, address: number): boolean {
  readEntries(pagemap, address, 1);
  return (entries[1]! & SOFT_DIRTY) !== 0;
}

/** @returns entries read, at least 1 */
function readEntries(pagemap: number, address: number, wanted: number): number {
  let got: number;
  try {
    got = readSync(pagemap, entries, 0, wanted * ENTRY_BYTES, (address / PAGE_SIZE_BYTES) * ENTRY_BYTES);
  } catch (cause) {
    if (systemErrorCode(cause) === 'ESRCH') throw vmGone(cause);
    throw new CheckpointError('TRACKER_FAILED', `reading the page map of QEMU: ${describeError(cause)}`, {
      cause,
    });
  }
  // The map of an address space that is gone ends at once.
  if (got < ENTRY_BYTES) throw vmGone();
  return Math.floor(got / ENTRY_BYTES);
}

function vmGone(cause?: unknown): CheckpointError {
  return new CheckpointError('VM_GONE', 'the VM has ended while its dirty pages were collected', { cause });
}
