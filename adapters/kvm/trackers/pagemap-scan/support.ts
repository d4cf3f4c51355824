/** Whether this host and this process allow the pagemap-scan tracker, found out without touching QEMU. */

import { closeSync, openSync, readFileSync } from 'node:fs';

import { describeError, systemErrorCode } from '../../../../src/errors.js';
import { openOwnPagemap } from '../../../../src/ffi/core-dumps.js';
import { addressOf, errnoName, libc } from '../../../../src/ffi/libc.js';
import type { TrackerReport } from '../../../../src/hypervisor/dirty-tracker.js';
import { PAGE_SIZE_BYTES } from '../../../../src/types.js';
import { tryScan } from '../../memory/pagemap.js';
import { writeTrackingDescriptors } from './arming.js';
import { enableWriteTracking, openUserfaultfd } from './userfaultfd.js';

export const PAGEMAP_SCAN_KIND = 'pagemap-scan';

interface Obstacle {
  readonly reason: string;
  readonly remedy: string;
}

export function pagemapScanReport(pid: number): TrackerReport {
  const obstacle = kernelObstacle() ?? accessObstacle(pid);
  return obstacle === undefined
    ? {
        kind: PAGEMAP_SCAN_KIND,
        usable: true,
        reason:
          'write-protect marks of the kernel (userfaultfd, PAGEMAP_SCAN): the pause reads them, about 1 ms for each GiB',
        ...(writeTrackingDescriptors(pid).length > 0 ? { armed: true } : {}),
      }
    : { kind: PAGEMAP_SCAN_KIND, usable: false, ...obstacle };
}

/** Tried on this process itself. Undefined when the kernel has all of it. */
export function kernelObstacle(): Obstacle | undefined {
  try {
    libc();
  } catch (error) {
    return { reason: describeError(error), remedy: 'x86-64 Linux is needed' };
  }
  return scanObstacle() ?? userfaultfdObstacle();
}

function scanObstacle(): Obstacle | undefined {
  const remedy = 'a kernel of version 6.7 or later';
  let pagemap: number;
  try {
    pagemap = openOwnPagemap();
  } catch (error) {
    return { reason: `/proc/self/pagemap: ${describeError(error)}`, remedy };
  }
  try {
    const bytes = new Uint8Array(2 * PAGE_SIZE_BYTES);
    const start = Math.ceil(Number(addressOf(bytes)) / PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES;
    const errno = tryScan(pagemap, start, start + PAGE_SIZE_BYTES);
    return errno === '' ? undefined : { reason: `this kernel has no PAGEMAP_SCAN (${errno})`, remedy };
  } finally {
    closeSync(pagemap);
  }
}

function userfaultfdObstacle(): Obstacle | undefined {
  const descriptor = openUserfaultfd();
  if (descriptor < 0) {
    return {
      reason: `userfaultfd is refused here (${errnoName(-descriptor)})`,
      remedy: 'a kernel with CONFIG_USERFAULTFD; in a container, a seccomp profile that allows userfaultfd',
    };
  }
  try {
    const errno = enableWriteTracking(descriptor);
    if (errno === '') return undefined;
    return {
      reason: `this kernel's userfaultfd has no asynchronous write-protection (${errno})`,
      remedy: 'a kernel of version 6.7 or later with CONFIG_PTE_MARKER_UFFD_WP',
    };
  } finally {
    closeSync(descriptor);
  }
}

/** The right to ptrace QEMU, as far as it shows without doing it. */
function accessObstacle(pid: number): Obstacle | undefined {
  try {
    // Opening it takes the same permission check as attaching.
    closeSync(openSync(`/proc/${pid}/mem`, 'r'));
    const tracer = /^TracerPid:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? '0';
    if (tracer === '0') return undefined;
    return { reason: `process ${tracer} traces QEMU`, remedy: 'detach the debugger or strace' };
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT')
      return { reason: `process ${pid} has ended`, remedy: 'start the VM' };
    return {
      reason: `no permission to trace process ${pid}`,
      remedy: 'run as root or with CAP_SYS_PTRACE; see kernel.yama.ptrace_scope',
    };
  }
}
