/**
 * The ptrace(2) calls of the tracer, each of them numbered: a test sets CAIRN_TRACER_FAULT_POINT to N and the
 * tracer kills itself with SIGKILL after its Nth call, so that each state in which a dead tracer can leave
 * QEMU is one that a test has seen.
 *
 * What the kernel does when a tracer dies (kernel/ptrace.c, `exit_ptrace`, and kernel/signal.c,
 * `ptrace_stop`): it detaches, and the thread runs on with the registers it has. Two things survive the
 * tracer, and are the reason for two rules here:
 *
 * - A stop that nobody has waited for keeps its code, a stop that was waited for has lost it. A signal in a
 *   signal stop would be lost with a tracer that dies after waitpid(2). So `nextStop` looks with WNOWAIT and
 *   leaves the code there: the signal is then delivered.
 * - After a stop at a system call, the kernel sends the code that is left as a signal. With
 *   PTRACE_O_TRACESYSGOOD the code is SIGTRAP + 128, which is no signal, and nothing is sent; without the
 *   option it is SIGTRAP, which kills. The option comes with PTRACE_SEIZE itself.
 */

import { addressOf, errnoName, libc } from '../../../../../src/ffi/libc.js';
import { PAGE_SIZE_BYTES } from '../../../../../src/types.js';

const SYS_PTRACE = 101;
const SYS_MLOCK = 149;
const SYS_WAITID = 247;
const SYS_PROCESS_VM_WRITEV = 311;

const PTRACE_CONT = 7;
const PTRACE_GETREGS = 12;
const PTRACE_SETREGS = 13;
const PTRACE_DETACH = 17;
const PTRACE_SYSCALL = 24;
const PTRACE_GETREGSET = 0x4204;
const PTRACE_SEIZE = 0x4206;
const PTRACE_INTERRUPT = 0x4207;
const PTRACE_GETSIGMASK = 0x420a;
const PTRACE_SECCOMP_GET_FILTER = 0x420c;
const PTRACE_GET_SYSCALL_INFO = 0x420e;
const PTRACE_O_TRACESYSGOOD = 1n;
const PTRACE_EVENT_STOP = 128;
const NT_X86_XSTATE = 0x202n;
const SIGTRAP = 5;
const SYSCALL_STOP = SIGTRAP | 0x80;
const SIGNAL_SET_BYTES = 8n;

const P_PID = 1;
const WNOHANG = 1;
const WSTOPPED = 2;
const WEXITED = 4;
const WNOWAIT = 0x0100_0000;
const WALL = 0x4000_0000;
const CLD_TRAPPED = 4;
const CLD_STOPPED = 5;

/** struct user_regs_struct of x86-64, as u64 words. */
export const REG = {
  r15: 0,
  r14: 1,
  r13: 2,
  r12: 3,
  rbp: 4,
  rbx: 5,
  r11: 6,
  r10: 7,
  r9: 8,
  r8: 9,
  rax: 10,
  rcx: 11,
  rdx: 12,
  rsi: 13,
  rdi: 14,
  origRax: 15,
  rip: 16,
  cs: 17,
  flags: 18,
  rsp: 19,
  ss: 20,
} as const;
export const REG_COUNT = 27;

/** BPF_MAXINSNS of 8 bytes. */
const MAX_FILTER_BYTES = 4096 * 8;
/** More than any processor of today has: 11 008 bytes with AMX. */
const MAX_XSTATE_BYTES = 1 << 15;

/**
 * An interrupted thread stops at once. One that has not after this long is frozen, or in the depths of a disk
 * driver.
 */
const STOP_LIMIT_MS = 2000;

export type Stop =
  /** What PTRACE_INTERRUPT asked for. */
  | { readonly kind: 'interrupted' }
  /** The whole process is being stopped by SIGSTOP or the like. */
  | { readonly kind: 'group-stop' }
  /** The thread is on its way into a system call, or out of it. */
  | { readonly kind: 'syscall' }
  /** A signal is about to be delivered, and is when the thread is resumed with it. */
  | { readonly kind: 'signal'; readonly signal: number }
  | { readonly kind: 'ended' };

/** What the kernel tells at a `syscall` stop. */
export interface SyscallInfo {
  readonly isExit: boolean;
  readonly instructionPointer: bigint;
  readonly stackPointer: bigint;
  /** The number of the call at its entry; the result at its exit. */
  readonly value: bigint;
}

const fatalCall = Number(process.env.CAIRN_TRACER_FAULT_POINT ?? '0');
let callCount = 0;
let isCounting = false;

/** Calls are counted from here on. */
export function countCalls(): void {
  isCounting = true;
}

/** Dies here when this is the call asked for. */
function countCall(): void {
  if (isCounting && ++callCount === fatalCall) process.kill(process.pid, 'SIGKILL');
}

/**
 * Registers are handed to the kernel out of one page that stays in memory: the kernel copies them one by one,
 * and a page that had to be read back from swap on the way would let a kill cut the copy in the middle.
 */
const lockedPage = (() => {
  const bytes = new ArrayBuffer(2 * PAGE_SIZE_BYTES);
  const start = Number(addressOf(new Uint8Array(bytes)));
  const offset = Math.ceil(start / PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES - start;
  const registers = new BigUint64Array(bytes, offset, REG_COUNT);
  // Where the limit of locked memory is 0 the page stays an ordinary one, which was written to a moment
  // before.
  libc().syscall(SYS_MLOCK, addressOf(registers), PAGE_SIZE_BYTES);
  return registers;
})();

/** Attaches without stopping the thread. @returns empty, or the name of the error */
export function seize(thread: number): string {
  return ptrace(PTRACE_SEIZE, thread, 0n, PTRACE_O_TRACESYSGOOD);
}

export function interrupt(thread: number): string {
  return ptrace(PTRACE_INTERRUPT, thread, 0n, 0n);
}

export function readRegisters(thread: number): BigUint64Array | undefined {
  const registers = new BigUint64Array(REG_COUNT);
  return ptrace(PTRACE_GETREGS, thread, 0n, addressOf(registers)) === '' ? registers : undefined;
}

/** All of them in one step. @returns empty, or the name of the error */
export function writeRegisters(thread: number, registers: BigUint64Array): string {
  lockedPage.set(registers);
  return ptrace(PTRACE_SETREGS, thread, 0n, addressOf(lockedPage));
}

/** State of the floating-point and vector units, in the layout of XSAVE. */
export function readExtendedState(thread: number): Uint8Array | undefined {
  const bytes = new Uint8Array(MAX_XSTATE_BYTES);
  const vector = BigUint64Array.of(addressOf(bytes), BigInt(bytes.length));
  if (ptrace(PTRACE_GETREGSET, thread, NT_X86_XSTATE, addressOf(vector)) !== '') return undefined;
  return bytes.subarray(0, Number(vector[1]));
}

/** The mask that the thread has outside of the system call it is in. */
export function readSignalMask(thread: number): bigint | undefined {
  const mask = new BigUint64Array(1);
  return ptrace(PTRACE_GETSIGMASK, thread, SIGNAL_SET_BYTES, addressOf(mask)) === '' ? mask[0] : undefined;
}

/** Seccomp filters of a stopped thread, which only root may read: none where this process may not. */
export function readSeccompFilters(thread: number): readonly Uint8Array[] {
  const filters: Uint8Array[] = [];
  const bytes = new Uint8Array(MAX_FILTER_BYTES);
  while (ptrace(PTRACE_SECCOMP_GET_FILTER, thread, BigInt(filters.length), addressOf(bytes)) === '')
    filters.push(bytes.slice());
  return filters;
}

/**
 * Writes where the process itself may write.
 * @returns false when that is not so everywhere; a part may be written then
 */
export function writeMemory(pid: number, address: bigint, bytes: Uint8Array): boolean {
  const local = BigUint64Array.of(addressOf(bytes), BigInt(bytes.length));
  const remote = BigUint64Array.of(address, BigInt(bytes.length));
  // SAFETY: both vectors and `bytes` are held by this frame; the kernel reads no more than their lengths.
  const written = libc().syscall(SYS_PROCESS_VM_WRITEV, pid, addressOf(local), 1, addressOf(remote), 1, 0);
  countCall();
  return written.value === bytes.length;
}

/** Runs on. @param signal to be delivered, 0 for none */
export function resume(thread: number, signal: number): string {
  return ptrace(PTRACE_CONT, thread, 0n, BigInt(signal));
}

/** Runs on, up to the next entry or exit of a system call. @param signal as `resume` */
export function runToSyscall(thread: number, signal: number): string {
  return ptrace(PTRACE_SYSCALL, thread, 0n, BigInt(signal));
}

/** Source: struct ptrace_syscall_info of linux/ptrace.h. */
export function readSyscallInfo(thread: number): SyscallInfo | undefined {
  const info = new BigUint64Array(16);
  if (ptrace(PTRACE_GET_SYSCALL_INFO, thread, BigInt(info.byteLength), addressOf(info)) !== '')
    return undefined;
  const operation = Number(info[0]! & 0xffn);
  if (operation !== 1 && operation !== 2) return undefined;
  return {
    isExit: operation === 2,
    instructionPointer: info[1]!,
    stackPointer: info[2]!,
    value: BigInt.asIntN(64, info[3]!),
  };
}

/** Only a stopped thread can be let go of. */
export function detach(thread: number, signal = 0): string {
  return ptrace(PTRACE_DETACH, thread, 0n, BigInt(signal));
}

/** @returns undefined when no stop came in time */
export function nextStop(thread: number): Stop | undefined {
  const info = new Int32Array(32);
  const options = WSTOPPED | WEXITED | WNOHANG | WNOWAIT | WALL;
  const limit = performance.now() + STOP_LIMIT_MS;
  for (let spins = 0; performance.now() < limit; spins++) {
    const waited = libc().syscall(SYS_WAITID, P_PID, thread, addressOf(info), options, 0);
    if (waited.value < 0) return { kind: 'ended' };
    // siginfo_t: code at word 2, process id at 4, status at 6.
    if (info[4] === thread) {
      countCall();
      return describeStop(info[2]!, info[6]!);
    }
    // Nearly always there after a few microseconds; later on leave the processor to others.
    if (spins > 200) sleep(0.2);
  }
  return undefined;
}

function describeStop(code: number, status: number): Stop {
  if (code !== CLD_TRAPPED && code !== CLD_STOPPED) return { kind: 'ended' };
  if (status >> 8 === PTRACE_EVENT_STOP)
    return { kind: (status & 0xff) === SIGTRAP ? 'interrupted' : 'group-stop' };
  return status === SYSCALL_STOP ? { kind: 'syscall' } : { kind: 'signal', signal: status & 0x7f };
}

/** @returns empty, or the name of the error */
function ptrace(request: number, thread: number, address: bigint, data: bigint): string {
  // SAFETY: `data` is the address of a typed array that the caller holds, of the size that the request
  // defines.
  const called = libc().syscall(SYS_PTRACE, request, thread, address, data);
  countCall();
  return called.value < 0 ? errnoName(called.errno) : '';
}

const sleeper = new Int32Array(new SharedArrayBuffer(4));

export function sleep(milliseconds: number): void {
  Atomics.wait(sleeper, 0, 0, milliseconds);
}
