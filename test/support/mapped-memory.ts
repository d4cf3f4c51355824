/**
 * A process with a block of memory that a test has taken away from it, as QEMU does when memory is unplugged.
 * Prints the address of the block; a line on its standard input unmaps the block, and is answered with "unmapped".
 * Argument: bytes.
 */

import { libc } from '../../src/ffi/libc.js';

const SYS_MMAP = 9;
const SYS_MUNMAP = 11;
const PROT_READ_WRITE = 3;
const MAP_PRIVATE_ANONYMOUS = 0x22;

const sizeBytes = Number(process.argv[2]);
const address = libc().syscall(SYS_MMAP, 0, sizeBytes, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0).value;
process.stdin.on('data', () => {
  libc().syscall(SYS_MUNMAP, address, sizeBytes);
  process.stdout.write('unmapped\n');
});
process.stdout.write(`${address}\n`);
