/**
 * Anonymous files in memory (memfd_create(2)): no name in any file system, gone with their last descriptor.
 */

import { CheckpointError } from '../errors.js';
import { addressOf, errnoName, libc } from './libc.js';

const SYS_FCNTL = 72;
const SYS_MEMFD_CREATE = 319;
const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;

/** fcntl(2), F_ADD_SEALS and F_GET_SEALS: the length stays, and nobody writes or punches a hole any more. */
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
const SEALED = 2 | 4 | 8;

/**
 * @param name shows in /proc/PID/fd, for whoever looks for what uses the memory
 * @returns a descriptor for reading and writing; the caller closes it
 * @throws FFI_FAILED
 */
export function createMemoryFile(name: string, options: { readonly canBeSealed?: boolean } = {}): number {
  const flags = MFD_CLOEXEC | (options.canBeSealed === true ? MFD_ALLOW_SEALING : 0);
  const created = libc().syscall(SYS_MEMFD_CREATE, addressOf(Buffer.from(`${name}\0`)), flags);
  if (created.value >= 0) return created.value;
  throw new CheckpointError('FFI_FAILED', `making memory for ${name}: ${errnoName(created.errno)}`);
}

/** From here on its content and its length stay as they are, whoever has it open. @throws FFI_FAILED */
export function sealMemoryFile(descriptor: number): void {
  const sealed = libc().syscall(SYS_FCNTL, descriptor, F_ADD_SEALS, SEALED);
  if (sealed.value >= 0) return;
  throw new CheckpointError('FFI_FAILED', `sealing a file in memory: ${errnoName(sealed.errno)}`);
}

/** Whether that was done with the file behind a descriptor. */
export function isSealedMemoryFile(descriptor: number): boolean {
  const { value } = libc().syscall(SYS_FCNTL, descriptor, F_GET_SEALS);
  return value >= 0 && (value & SEALED) === SEALED;
}
