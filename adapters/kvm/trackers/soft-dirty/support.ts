/**
 * Whether this host, this process and this VM allow the soft-dirty tracker, found out without touching QEMU.
 */

import { accessSync, closeSync, constants, openSync } from 'node:fs';

import { describeError, systemErrorCode } from '../../../../src/errors.js';
import { openOwnPagemap } from '../../../../src/ffi/core-dumps.js';
import { addressOf } from '../../../../src/ffi/libc.js';
import type { TrackerReport } from '../../../../src/hypervisor/dirty-tracker.js';
import { PAGE_SIZE_BYTES } from '../../../../src/types.js';
import type { RamBlock } from '../../memory/ram-blocks.js';
import { isSoftDirty } from './entries.js';
import { hasMergedPages, isMerging } from './kernel-moves.js';

export const SOFT_DIRTY_KIND = 'soft-dirty';

interface Obstacle {
  readonly reason: string;
  readonly remedy: string;
}

export function softDirtyReport(pid: number, blocks: readonly RamBlock[]): TrackerReport {
  const obstacle =
    softDirtyKernelObstacle() ?? memoryObstacle(blocks) ?? accessObstacle(pid) ?? mergingObstacle(pid);
  return obstacle === undefined
    ? {
        kind: SOFT_DIRTY_KIND,
        usable: true,
        reason:
          'soft-dirty bits of the kernel (clear_refs, pagemap): the pause reads 8 bytes a page; each live round stops the VM for a moment',
      }
    : { kind: SOFT_DIRTY_KIND, usable: false, ...obstacle };
}

/** A page just written shows the bit on kernels that have it. Tried on this process; nothing is cleared. */
export function softDirtyKernelObstacle(): Obstacle | undefined {
  const remedy = 'a kernel with CONFIG_MEM_SOFT_DIRTY';
  let pagemap: number | undefined;
  try {
    pagemap = openOwnPagemap();
    const bytes = new Uint8Array(2 * PAGE_SIZE_BYTES);
    const page = Math.ceil(Number(addressOf(bytes)) / PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES;
    bytes.fill(1);
    return isSoftDirty(pagemap, page)
      ? undefined
      : { reason: 'this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)', remedy };
  } catch (error) {
    return { reason: `/proc/self/pagemap: ${describeError(error)}`, remedy };
  } finally {
    if (pagemap !== undefined) closeSync(pagemap);
  }
}

/**
 * Only private anonymous memory keeps its bits. A page of a file or of shared memory loses them when the
 * kernel unmaps it, and huge pages of hugetlbfs have none.
 */
function memoryObstacle(blocks: readonly RamBlock[]): Obstacle | undefined {
  const other = blocks.find(({ backing }) => backing !== 'anonymous');
  return other === undefined
    ? undefined
    : {
        reason: `memory region ${other.id} is not private anonymous memory (${other.backing}), for which the kernel does not keep the bits`,
        remedy: 'a kernel of version 6.7 or later (tracker pagemap-scan), or guest memory without a file',
      };
}

/** A merged page is another page, which comes without the bit. */
function mergingObstacle(pid: number): Obstacle | undefined {
  if (!isMerging(pid) && !hasMergedPages(pid)) return undefined;
  return {
    reason: 'KSM merges pages of this VM, for which the kernel does not keep the bits',
    remedy: 'start the VM with -machine mem-merge=off, or unmerge all pages (echo 2 >/sys/kernel/mm/ksm/run)',
  };
}

function accessObstacle(pid: number): Obstacle | undefined {
  try {
    // Opening it takes the same permission check as attaching.
    closeSync(openSync(`/proc/${pid}/mem`, 'r+'));
    accessSync(`/proc/${pid}/clear_refs`, constants.W_OK);
    return undefined;
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT')
      return { reason: `process ${pid} has ended`, remedy: 'start the VM' };
    return {
      reason: `no permission to clear and read the page marks of process ${pid}`,
      remedy: 'run as root, or as the user of QEMU with CAP_SYS_PTRACE; see kernel.yama.ptrace_scope',
    };
  }
}
