/**
 * Anonymous files in memory (memfd_create(2)): no name in any file system, gone with their last descriptor.
 */

import { CheckpointError } from '../errors.js';
import { addressOf, errnoName, libc } from './libc.js';

const SYS_MEMFD_CREATE = 319;
const MFD_CLOEXEC = 1;

/**
 * @param name shows in /proc/PID/fd, for whoever looks for what uses the memory
 * @returns a descriptor for reading and writing; the caller closes it
 * @throws FFI_FAILED
 */
export function createMemoryFile(name: string): number {
  const created = libc().syscall(SYS_MEMFD_CREATE, addressOf(Buffer.from(`${name}\0`)), MFD_CLOEXEC);
  if (created.value >= 0) return created.value;
  throw new CheckpointError('FFI_FAILED', `making memory for ${name}: ${errnoName(created.errno)}`);
}
