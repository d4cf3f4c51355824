/**
 * Pages that the VM gave back: a balloon, free page reporting (MADV_DONTNEED). They have no entry in the page
 * table any more, or no page table. Kernel 6.18 reports them as written until they are marked anew; 6.12 does
 * not report what has no entry (seen on both), so there the tracker looks for holes by itself. Which kind
 * this kernel is, is tried out on memory of this process.
 */

import { closeSync, openSync } from 'node:fs';

import { openOwnPagemap } from '../../../../src/ffi/core-dumps.js';
import { libc } from '../../../../src/ffi/libc.js';
import { PAGE_SIZE_BYTES } from '../../../../src/types.js';
import { scanWritten } from '../../memory/pagemap.js';
import { enableWriteTracking, openUserfaultfd, registerRange } from './userfaultfd.js';

const SYS_READ = 0;
const SYS_MMAP = 9;
const SYS_MUNMAP = 11;
const SYS_MADVISE = 28;
const PROT_READ_WRITE = 3;
const MAP_PRIVATE_ANONYMOUS = 0x22;
const MADV_DONTNEED = 4;
/** Contains a whole page table that nothing has touched. */
const SIZE_BYTES = 6 << 20;

let known: boolean | undefined;

/** False where it cannot be tried: looking for holes is never wrong, it only takes its time. */
export function discardsAreReported(): boolean {
  known ??= tried();
  return known;
}

function tried(): boolean {
  const mapped = libc().syscall(SYS_MMAP, 0, SIZE_BYTES, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0);
  if (mapped.value < 0) return false;
  const start = mapped.value;
  const descriptor = openUserfaultfd();
  const pagemap = openOwnPagemap();
  const zeros = openSync('/dev/zero', 'r');
  try {
    if (descriptor < 0 || enableWriteTracking(descriptor) !== '') return false;
    if (registerRange(descriptor, start, SIZE_BYTES) !== '') return false;
    const written = (): number => {
      let bytes = 0;
      scanWritten(
        pagemap,
        [[start, start + SIZE_BYTES]],
        true,
        (range) => (bytes += range.end - range.start),
      );
      return bytes;
    };
    if (libc().syscall(SYS_READ, zeros, start, PAGE_SIZE_BYTES).value !== PAGE_SIZE_BYTES) return false;
    const seesHoles = written() === SIZE_BYTES;
    if (libc().syscall(SYS_MADVISE, start, PAGE_SIZE_BYTES, MADV_DONTNEED).value < 0) return false;
    return seesHoles && written() === PAGE_SIZE_BYTES;
  } finally {
    closeSync(zeros);
    closeSync(pagemap);
    if (descriptor >= 0) closeSync(descriptor);
    libc().syscall(SYS_MUNMAP, start, SIZE_BYTES);
  }
}
