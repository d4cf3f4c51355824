/**
 * Does QEMU read disks straight into guest memory, past its page tables?
 *
 * A read with O_DIRECT (`cache=none`, `cache=directsync`) or a SCSI command passed through pins the guest's
 * pages when it is submitted, which marks them as written; the device writes its data later, and no mark
 * shows that. If the marks are cleared in between, the data is missed: seen on kernel 6.18 with a slow disk,
 * where a page copied after such a clearing kept its old contents in the checkpoint. Requests in flight are
 * complete once QEMU's `stop` has returned, so with such disks marks are cleared only in a pause.
 *
 * Buffered reads (`writeback`, the default of plain QEMU) and network disks are copied through the page
 * tables.
 */

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

import { openFlagsOf } from '../../qemu/open-flags.js';

/** O_DIRECT of x86-64 (asm-generic/fcntl.h). */
const O_DIRECT = 0o40000;
/** Commands passed through go to these, whatever flags they were opened with. */
const SCSI_DEVICE = /^\/dev\/(sd|sg|sr|bsg\/|st|nst)/;

/**
 * Path of a file that QEMU has open for it; undefined when there is none. Synchronous, 10 us for each
 * descriptor.
 */
export function findDirectIo(pid: number): string | undefined {
  let names: readonly string[];
  try {
    names = readdirSync(`/proc/${pid}/fd`);
  } catch {
    // The process has ended, or may not be looked at: whatever comes next says so.
    return undefined;
  }
  for (const name of names) {
    try {
      const target = readlinkSync(`/proc/${pid}/fd/${name}`);
      if (!target.startsWith('/')) continue;
      if (SCSI_DEVICE.test(target)) return target;
      if ((openFlagsOf(readFileSync(`/proc/${pid}/fdinfo/${name}`, 'latin1')) & O_DIRECT) !== 0)
        return target;
    } catch {
      // Closed in the meantime.
    }
  }
  return undefined;
}
