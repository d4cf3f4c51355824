/**
 * A process that the kernel ends for a system call that its filter does not know. Argument: the call's
 * number. Prints "sandboxed".
 */

import { addressOf, libc } from '../../src/ffi/libc.js';

const SYS_PRCTL = 157;
const SYS_SECCOMP = 317;
const PR_SET_NO_NEW_PRIVS = 38;
const SET_MODE_FILTER = 1;
const ALL_THREADS = 1;

/** Fields of struct sock_filter: code, jump if true, jump if false, constant. */
const PROGRAM = [
  [0x20, 0, 0, 0],
  [0x15, 0, 1, Number(process.argv[2])],
  [0x06, 0, 0, 0x80000000],
  [0x06, 0, 0, 0x7fff0000],
] as const;

const filter = new DataView(new ArrayBuffer(PROGRAM.length * 8));
PROGRAM.forEach(([code, ifTrue, ifFalse, constant], i) => {
  filter.setUint16(i * 8, code, true);
  filter.setUint8(i * 8 + 2, ifTrue);
  filter.setUint8(i * 8 + 3, ifFalse);
  filter.setUint32(i * 8 + 4, constant, true);
});
const program = BigUint64Array.of(BigInt(PROGRAM.length), addressOf(filter));
libc().syscall(SYS_PRCTL, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
const set = libc().syscall(SYS_SECCOMP, SET_MODE_FILTER, ALL_THREADS, addressOf(program));
process.stdout.write(set.value === 0 ? 'sandboxed\n' : `errno ${set.errno}\n`);
setInterval(() => undefined, 60_000);
