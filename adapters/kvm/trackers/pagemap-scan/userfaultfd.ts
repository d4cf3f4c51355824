/**
 * userfaultfd(2) in asynchronous write-protect mode: the kernel clears a page's write-protect mark by itself
 * at the first write, from wherever it comes (guest, QEMU, a system call of QEMU), and nobody has to handle a
 * fault. Source: linux/userfaultfd.h of kernel 6.7, Documentation/admin-guide/mm/userfaultfd.rst.
 */

import { errnoName, libc } from '../../../../src/ffi/libc.js';

export const SYS_USERFAULTFD = 323;
const O_CLOEXEC = 0o2000000;
const O_NONBLOCK = 0o4000;
/**
 * Allowed for every user whatever vm.unprivileged_userfaultfd says. It restricts whose faults are handed to a
 * handler; asynchronous write-protection has no handler, so writes by the kernel on QEMU's behalf are
 * recorded all the same.
 */
const UFFD_USER_MODE_ONLY = 1;
export const USERFAULTFD_FLAGS = O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY;

const UFFD_API = 0xaan;
const UFFDIO_API = 0xc018aa3fn;
const UFFDIO_REGISTER = 0xc020aa00n;
const UFFDIO_UNREGISTER = 0x8010aa01n;
const REGISTER_MODE_WP = 2n;

const FEATURE_WP_HUGETLBFS_SHMEM = 1n << 12n;
/** Pages that were never touched can be marked too: else a first write to one would go unseen. */
const FEATURE_WP_UNPOPULATED = 1n << 13n;
export const FEATURE_WP_ASYNC = 1n << 15n;
const FEATURES = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM;

/** Opens one in this process; for the probe. @returns descriptor, or a negative errno */
export function openUserfaultfd(): number {
  const opened = libc().syscall(SYS_USERFAULTFD, USERFAULTFD_FLAGS);
  return opened.value >= 0 ? opened.value : -opened.errno;
}

/** Chooses the features; once in the life of a descriptor. @returns empty, or the name of the error */
export function enableWriteTracking(descriptor: number): string {
  return name(libc().ioctl(descriptor, UFFDIO_API, BigUint64Array.of(UFFD_API, FEATURES, 0n)));
}

/**
 * Registers [start, start + length) of the process that the descriptor was opened in. Registering what is
 * registered with the same descriptor changes nothing. @returns empty, or the name of the error: EBUSY when
 * another userfaultfd has it
 */
export function registerRange(descriptor: number, start: number, lengthBytes: number): string {
  const range = BigUint64Array.of(BigInt(start), BigInt(lengthBytes), REGISTER_MODE_WP, 0n);
  return name(libc().ioctl(descriptor, UFFDIO_REGISTER, range));
}

/** Forgets the range and its marks. @returns empty, or the name of the error */
export function unregisterRange(descriptor: number, start: number, lengthBytes: number): string {
  return name(
    libc().ioctl(descriptor, UFFDIO_UNREGISTER, BigUint64Array.of(BigInt(start), BigInt(lengthBytes))),
  );
}

function name(result: { readonly value: number; readonly errno: number }): string {
  return result.value < 0 ? errnoName(result.errno) : '';
}
