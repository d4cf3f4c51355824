/**
 * A process that traces another one's thread and does nothing with it. Argument: thread id. Prints "tracing"
 * once it does.
 */

import { libc } from '../../src/ffi/libc.js';

const SYS_PTRACE = 101;
const PTRACE_SEIZE = 0x4206;

const seized = libc().syscall(SYS_PTRACE, PTRACE_SEIZE, Number(process.argv[2]), 0, 0);
process.stdout.write(seized.value === 0 ? 'tracing\n' : `errno ${seized.errno}\n`);
setInterval(() => undefined, 60_000);
