/**
 * Memory that was unplugged has no pages: to a scan of the page tables it looks like memory that was never
 * written.
 */

import { CheckpointError } from '../../../src/errors.js';
import { isMapped } from './pagemap.js';
import { readMemory } from './process-memory.js';
import type { RamBlock } from './ram-blocks.js';

/**
 * Looks at one page of each block: QEMU maps and unmaps blocks whole.
 * @param pagemap of the process, undefined on kernels without PAGEMAP_SCAN: then a byte is read instead
 * @throws TRACKER_OFF for a block that is not mapped any more, VM_GONE when the process has ended
 */
export function checkStillMapped(
  pid: number,
  pagemap: number | undefined,
  blocks: readonly RamBlock[],
): void {
  const missing = blocks.find(({ host }) =>
    pagemap === undefined ? readMemory(pid, host, new Uint8Array(1)) === 0 : !isMapped(pagemap, host),
  );
  if (missing === undefined) return;
  // The map of a process that has ended is empty; asking for its memory says so.
  readMemory(pid, missing.host, new Uint8Array(1));
  throw new CheckpointError('TRACKER_OFF', `memory region ${missing.id} is not mapped any more`, {
    hint: 'memory was unplugged; the next checkpoint follows the new layout',
    retryable: true,
    detail: { region: missing.id },
  });
}
