/**
 * One system call inside another process, by ptrace(2): a thread that sits in a system call is stopped, made to step over its
 * `syscall` instruction once more with other registers, and put back exactly as it was. The interrupted call restarts by
 * itself. About 0.1 ms, during which that one thread stands still; no code is written to the process.
 *
 *     SEIZE, INTERRUPT   thread stops inside its call, RIP behind `syscall` (0f 05)
 *     block signals      so that the single step cannot end in a signal handler
 *     SETREGS, STEP      RIP back by 2, RAX = number: runs the call, stops behind it
 *     SETREGS, DETACH    everything as before; held-back signals are delivered now
 *
 * All of it is synchronous on one OS thread, as ptrace demands, and undone in `finally`. Should this process die in between,
 * the kernel detaches: the thread then continues with the registers it has, at worst right after the extra call, which
 * looks to it like an interrupted call of its own.
 */

import { readdirSync, readFileSync } from 'node:fs';

import { CheckpointError } from '../../../../src/errors.js';
import { addressOf, errnoName, libc } from '../../../../src/ffi/libc.js';
import { readMemory } from '../../memory/process-memory.js';

const SYS_PTRACE = 101;
const PTRACE_CONT = 7;
const PTRACE_SINGLESTEP = 9;
const PTRACE_GETREGS = 12;
const PTRACE_SETREGS = 13;
const PTRACE_DETACH = 17;
const PTRACE_SEIZE = 0x4206;
const PTRACE_INTERRUPT = 0x4207;
const PTRACE_GETSIGMASK = 0x420a;
const PTRACE_SETSIGMASK = 0x420b;
const PTRACE_EVENT_STOP = 128;
const SIGTRAP = 5;
const WNOHANG = 1;
const WALL = 0x40000000;
const SIGNAL_SET_BYTES = 8;

/** struct user_regs_struct of x86-64, as u64 words. */
const REG = { r10: 7, r9: 8, r8: 9, rax: 10, rdx: 12, rsi: 13, rdi: 14, origRax: 15, rip: 16 } as const;
const REG_COUNT = 27;
const SYSCALL_BYTES = 2;

/** A thread in interruptible sleep stops at once. One that has not after this long is in the depths of a disk driver. */
const STOP_LIMIT_MS = 2000;
/** Other stops (a signal, a group stop) that may come in before the one that is waited for. */
const MAX_OTHER_STOPS = 16;

/**
 * Runs a system call in the process. `before` is run while the thread stands still; it may refuse by throwing.
 * @returns what the call returned: a negative errno when it failed
 * @throws VM_GONE, VM_PERMISSION, TRACKER_UNAVAILABLE when no thread is in a state in which this is safe
 */
export function injectSyscall(
  pid: number,
  number: number,
  args: readonly number[],
  before: () => void = () => undefined,
): number {
  const refusals: string[] = [];
  for (let attempt = 0; attempt < 3; attempt++) {
    for (const thread of sleepingThreads(pid)) {
      const outcome = tryThread(pid, thread, number, args, before);
      if (typeof outcome === 'number') return outcome;
      refusals.push(`thread ${thread}: ${outcome}`);
    }
    sleep(20);
  }
  throw new CheckpointError(
    'TRACKER_UNAVAILABLE',
    `no thread of process ${pid} can be interrupted safely (${refusals.at(-1) ?? 'none is waiting in a system call'})`,
    { hint: 'try again', retryable: true, detail: { pid } },
  );
}

/** Threads that wait in a system call, the main thread (which polls) first. Reads /proc only. */
function sleepingThreads(pid: number): readonly number[] {
  let threads: readonly number[];
  try {
    threads = readdirSync(`/proc/${pid}/task`).map(Number);
  } catch {
    throw gone(pid);
  }
  return threads
    .filter((thread) => {
      try {
        const base = `/proc/${pid}/task/${thread}`;
        const stat = readFileSync(`${base}/stat`, 'latin1');
        // "number args... sp pc", or "running", or "-1 sp pc" when it sleeps outside of a system call.
        return (
          stat.slice(stat.lastIndexOf(')') + 2).startsWith('S') &&
          /^\d/.test(readFileSync(`${base}/syscall`, 'latin1'))
        );
      } catch {
        return false;
      }
    })
    .sort((a, b) => Number(b === pid) - Number(a === pid));
}

/** @returns the call's result, or why this thread is not fit */
function tryThread(
  pid: number,
  thread: number,
  number: number,
  args: readonly number[],
  before: () => void,
): number | string {
  const seized = ptrace(PTRACE_SEIZE, thread, 0n, 0n);
  if (seized === 'ESRCH') return 'has ended';
  if (seized !== '') throw ptraceRefused(pid, seized);
  let stopped = false;
  let restore: (() => void) | undefined;
  try {
    if (ptrace(PTRACE_INTERRUPT, thread, 0n, 0n) !== '') return 'has ended';
    stopped = waitForStop(pid, thread);
    if (!stopped) {
      letGoLater(thread);
      return `did not stop within ${STOP_LIMIT_MS} ms`;
    }
    const saved = new BigUint64Array(REG_COUNT);
    if (ptrace(PTRACE_GETREGS, thread, 0n, addressOf(saved)) !== '') return 'has ended';
    const instruction = saved[REG.rip]! - BigInt(SYSCALL_BYTES);
    if (BigInt.asIntN(64, saved[REG.origRax]!) < 0n) return 'is not in a system call';
    const code = new Uint8Array(SYSCALL_BYTES);
    if (
      readMemory(pid, Number(instruction), code) !== SYSCALL_BYTES ||
      code[0] !== 0x0f ||
      code[1] !== 0x05
    ) {
      return 'is not behind a syscall instruction';
    }
    before();
    const mask = new BigUint64Array(1);
    if (ptrace(PTRACE_GETSIGMASK, thread, BigInt(SIGNAL_SET_BYTES), addressOf(mask)) !== '')
      return 'hides its signals';
    restore = () => {
      // Registers first: with them the thread is whole again even if the second call should fail.
      ptrace(PTRACE_SETREGS, thread, 0n, addressOf(saved));
      ptrace(PTRACE_SETSIGMASK, thread, BigInt(SIGNAL_SET_BYTES), addressOf(mask));
    };
    const none = BigUint64Array.of(0xffff_ffff_ffff_ffffn);
    ptrace(PTRACE_SETSIGMASK, thread, BigInt(SIGNAL_SET_BYTES), addressOf(none));
    const registers = callRegisters(saved, instruction, number, args);
    if (ptrace(PTRACE_SETREGS, thread, 0n, addressOf(registers)) !== '') return 'has ended';
    return step(pid, thread, registers, instruction);
  } finally {
    if (stopped) {
      restore?.();
      ptrace(PTRACE_DETACH, thread, 0n, 0n);
    }
  }
}

function callRegisters(
  saved: BigUint64Array,
  instruction: bigint,
  number: number,
  args: readonly number[],
): BigUint64Array {
  const registers = saved.slice();
  registers[REG.rip] = instruction;
  registers[REG.rax] = BigInt(number);
  // Not in a system call: otherwise the kernel would restart the interrupted one instead.
  registers[REG.origRax] = 0xffff_ffff_ffff_ffffn;
  [REG.rdi, REG.rsi, REG.rdx, REG.r10, REG.r8, REG.r9].forEach((register, i) => {
    registers[register] = BigInt(args[i] ?? 0);
  });
  return registers;
}

/** Steps over the instruction. @returns RAX as a signed number, or why it did not come to that */
function step(pid: number, thread: number, registers: BigUint64Array, instruction: bigint): number | string {
  for (let stops = 0; stops < MAX_OTHER_STOPS; stops++) {
    if (ptrace(PTRACE_SINGLESTEP, thread, 0n, 0n) !== '') return 'has ended';
    const status = wait(pid, thread);
    if (status === undefined) return 'did not come back from the call';
    if (ptrace(PTRACE_GETREGS, thread, 0n, addressOf(registers)) !== '') return 'has ended';
    // A group stop or the like came first: the instruction is still ahead.
    if (registers[REG.rip] === instruction) continue;
    if (stopSignal(status) !== SIGTRAP) continue;
    return Number(BigInt.asIntN(64, registers[REG.rax]!));
  }
  return 'was stopped over and over';
}

/** Waits for the stop that PTRACE_INTERRUPT asked for; signals that come in before it are passed on. */
function waitForStop(pid: number, thread: number): boolean {
  for (let stops = 0; stops < MAX_OTHER_STOPS; stops++) {
    const status = wait(pid, thread);
    if (status === undefined) return false;
    if (status >> 16 === PTRACE_EVENT_STOP) return true;
    ptrace(PTRACE_CONT, thread, 0n, BigInt(stopSignal(status)));
  }
  return false;
}

/** @returns the wait status of a stop; undefined when none came in time. @throws VM_GONE when the thread has ended */
function wait(pid: number, thread: number): number | undefined {
  const status = new Int32Array(1);
  const limit = performance.now() + STOP_LIMIT_MS;
  for (let spins = 0; performance.now() < limit; spins++) {
    const waited = libc().waitpid(thread, status, WALL | WNOHANG);
    if (waited.value < 0) throw gone(pid);
    if (waited.value === thread) {
      if ((status[0]! & 0xff) !== 0x7f) throw gone(pid);
      return status[0]!;
    }
    // Nearly always there after a few microseconds; later on leave the processor to others.
    if (spins > 200) sleep(0.2);
  }
  return undefined;
}

/** The stop that was asked for will still come, and the thread would then stand still until this process ends. */
function letGoLater(thread: number): void {
  const status = new Int32Array(1);
  const timer = setInterval(() => {
    const waited = libc().waitpid(thread, status, WALL | WNOHANG);
    if (waited.value === 0) return;
    clearInterval(timer);
    ptrace(PTRACE_DETACH, thread, 0n, 0n);
  }, 5);
  timer.unref();
}

function stopSignal(status: number): number {
  return (status >> 8) & 0xff;
}

/** @returns empty, or the name of the error */
function ptrace(request: number, thread: number, address: bigint, data: bigint): string {
  // SAFETY: `data` is the address of a typed array that the caller holds, of the size that the request defines.
  const called = libc().syscall(SYS_PTRACE, request, thread, address, data);
  return called.value < 0 ? errnoName(called.errno) : '';
}

const sleeper = new Int32Array(new SharedArrayBuffer(4));

function sleep(milliseconds: number): void {
  Atomics.wait(sleeper, 0, 0, milliseconds);
}

function gone(pid: number): CheckpointError {
  return new CheckpointError('VM_GONE', `process ${pid} has ended`);
}

function ptraceRefused(pid: number, errno: string): CheckpointError {
  return new CheckpointError('VM_PERMISSION', `not allowed to trace process ${pid}: ${errno}`, {
    hint: 'run as root or with CAP_SYS_PTRACE; see kernel.yama.ptrace_scope; a debugger on QEMU stands in the way as well',
    detail: { pid, errno },
  });
}
