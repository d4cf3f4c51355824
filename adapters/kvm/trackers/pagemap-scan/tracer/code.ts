/**
 * Instructions that every C library on x86-64 has, looked for in what a process has mapped. Nothing is ever
 * written to code.
 */

import { CheckpointError } from '../../../../../src/errors.js';
import { readMaps, type Mapping } from '../../../memory/process-maps.js';
import { readMemory } from '../../../memory/process-memory.js';

/** `syscall; ret`, as in getpid and many more. */
const CALL = Buffer.of(0x0f, 0x05, 0xc3);
/** `mov $15, %rax; syscall`, to which signal handlers return (rt_sigreturn). */
const RETURN = Buffer.of(0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05);
/** No C library is larger by far; QEMU itself is, and is looked through last. */
const MAX_MAPPING_BYTES = 64 << 20;

export interface CallCode {
  /** Address of `syscall; ret`. */
  readonly call: bigint;
  /** Address of the code that calls rt_sigreturn. */
  readonly signalReturn: bigint;
  readonly maps: readonly Mapping[];
}

/** @throws TRACKER_UNAVAILABLE, VM_GONE, VM_PERMISSION */
export async function findCallCode(pid: number): Promise<CallCode> {
  const maps = await readMaps(pid);
  let call: bigint | undefined;
  let signalReturn: bigint | undefined;
  const isLibrary = ({ name }: Mapping): boolean => /\/(libc[.-]|ld-musl)/.test(name);
  const code = maps.filter(
    ({ readable, writable, executable, inode, start, end }) =>
      readable && executable && !writable && inode !== 0 && end - start <= MAX_MAPPING_BYTES,
  );
  for (const { start, end } of code.sort((a, b) => Number(isLibrary(b)) - Number(isLibrary(a)))) {
    const bytes = Buffer.alloc(end - start);
    const found = bytes.subarray(0, readMemory(pid, start, bytes));
    call ??= addressIn(found, CALL, start);
    signalReturn ??= addressIn(found, RETURN, start);
    if (call !== undefined && signalReturn !== undefined) return { call, signalReturn, maps };
  }
  throw new CheckpointError(
    'TRACKER_UNAVAILABLE',
    `process ${pid} has no code that returns from a system call or from a signal`,
    { detail: { pid } },
  );
}

function addressIn(bytes: Buffer, pattern: Buffer, start: number): bigint | undefined {
  const at = bytes.indexOf(pattern);
  return at < 0 ? undefined : BigInt(start + at);
}
