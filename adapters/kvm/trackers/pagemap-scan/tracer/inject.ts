/**
 * One system call inside another process, by ptrace(2), in such a way that the tracer may die between any two
 * of its steps.
 *
 *     SEIZE, INTERRUPT    a thread that waits in a system call stops, without a signal
 *     GETREGS ...         its state is read
 *     write the frame     below its stack, where nothing is: `signal-frame.ts`
 *     SETREGS             the switch: rip at `syscall; ret`, the call in the registers, rsp at the frame
 *     SYSCALL, SYSCALL    the thread goes into the call and comes out of it
 *     DETACH              it returns into rt_sigreturn, and is where it was
 *
 * Before the switch the thread is as it was found, and interrupted calls are made again by the kernel. After
 * it the thread needs nobody any more to make the call and come back, and is as it would be in a signal
 * handler. Nothing that has to be put back is ever changed: no code, no signal mask, no single step. What a
 * dead tracer leaves is that the call was made, or was not. No thread waits longer than `STOP_LIMIT_MS` for
 * an answer; what has not stopped by then is let go by the end of this process (`tracer-main.ts`).
 */

import { CheckpointError } from '../../../../../src/errors.js';
import type { Mapping } from '../../../memory/process-maps.js';
import { readMemory } from '../../../memory/process-memory.js';
import { findCallCode, type CallCode } from './code.js';
import { REG, sleep, writeMemory } from './ptrace.js';
import { letsPass } from './seccomp.js';
import { buildSignalFrame, resumed, SYSCALL_BYTES } from './signal-frame.js';
import { waitingThreads, type WaitingThread } from './threads.js';
import { Tracee } from './tracee.js';

const SYS_RT_SIGRETURN = 15;
/** Length of `mov $15, %rax; syscall`. */
const SIGNAL_RETURN_BYTES = 9n;
const CS_64_BIT = 0x33n;
const NO_SYSCALL = 0xffff_ffff_ffff_ffffn;

/**
 * Attempts go on for a second: on a machine that is short of processors, threads are ready to run most of the
 * time.
 */
const ATTEMPTS = 50;
const PAUSE_BETWEEN_MS = 20;
/** Stops on the way to the result: signals, and the system calls of their handlers. */
const MAX_STOPS = 64;
/**
 * A frame takes 3 KiB. It is kept away from the end of a stack; the smallest one in QEMU is that of a
 * coroutine, 1 MiB.
 */
const STACK_ROOM_BYTES = 16 << 10;

export interface InjectedCall {
  readonly number: number;
  readonly args: readonly number[];
  /** Run while the thread stands still and nothing has been changed; it may refuse by throwing. */
  readonly before?: () => void;
}

export interface InjectResult {
  /** What the call returned: a negative errno when it failed. */
  readonly value: number;
  /** How long the thread was kept from its own work. */
  readonly stoppedMs: number;
}

interface Prepared {
  /** What the thread was found with. */
  readonly found: BigUint64Array;
  readonly calling: BigUint64Array;
}

/** Says why a thread cannot be used. */
type Refusal = string;

/**
 * @throws VM_GONE, VM_PERMISSION, TRACKER_UNAVAILABLE when no thread is in a state in which this is safe.
 *   After a failure this process has to end: that is what lets go of a thread that does not answer.
 */
export async function inject(pid: number, call: InjectedCall): Promise<InjectResult> {
  return injectWith(pid, await findCallCode(pid), call);
}

/** Does what `inject` does, with code that was found before. */
export function injectWith(pid: number, code: CallCode, call: InjectedCall): InjectResult {
  let refusal: Refusal = 'none of its threads waits in a system call; is it frozen?';
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const { threads, isStopped } = waitingThreads(pid);
    if (isStopped) throw refused(pid, 'a signal has stopped it', 'continue it (SIGCONT)');
    for (const thread of threads) {
      const outcome = tryThread(pid, thread, code, call);
      if (typeof outcome !== 'string') return outcome;
      refusal = `thread ${thread.id} ${outcome}`;
    }
    sleep(PAUSE_BETWEEN_MS);
  }
  throw refused(pid, refusal, 'try again');
}

function tryThread(
  pid: number,
  thread: WaitingThread,
  code: CallCode,
  call: InjectedCall,
): InjectResult | Refusal {
  if (thread.hasShadowStack) return 'has a shadow stack';
  if (!hasRoom(code.maps, thread.stackPointer)) return 'has no room on its stack';
  const tracee = Tracee.seize(pid, thread.id);
  if (tracee === undefined) return 'has ended';
  try {
    const from = performance.now();
    const stop = tracee.interrupt();
    if (stop === undefined) throw silent(pid);
    if (stop !== 'interrupted') return stop === 'group-stop' ? 'is stopped by a signal' : 'has ended';
    const prepared = prepare(pid, thread, tracee, code, call);
    if (typeof prepared === 'string') return prepared;
    call.before?.();
    if (!tracee.writeRegisters(prepared.calling)) return 'has ended';
    const value = runCall(pid, tracee, prepared);
    if (typeof value === 'string') return value;
    tracee.letGo();
    return { value, stoppedMs: performance.now() - from };
  } finally {
    tracee.letGo();
  }
}

/** Writes the frame, which is nothing to the thread until its registers point there. */
function prepare(
  pid: number,
  { signalMask, isFiltered }: WaitingThread,
  tracee: Tracee,
  { maps, call: instruction, signalReturn }: CallCode,
  call: InjectedCall,
): Prepared | Refusal {
  const found = tracee.readRegisters();
  if (found === undefined) return 'has ended';
  if (BigInt.asIntN(64, found[REG.origRax]!) < 0n || found[REG.cs] !== CS_64_BIT)
    return 'is not in a system call';
  const code = new Uint8Array(SYSCALL_BYTES);
  const behind = Number(found[REG.rip]!) - SYSCALL_BYTES;
  if (readMemory(pid, behind, code) !== SYSCALL_BYTES || code[0] !== 0x0f || code[1] !== 0x05)
    return 'is not behind a syscall instruction';
  const registers = resumed(found);
  if (registers === undefined) return 'waits with a time limit';
  // A handler that ran before the call is made again would not end it, as it has to where the mask is the
  // call's own.
  if (tracee.readSignalMask() !== signalMask) return 'waits for signals';
  const extendedState = tracee.readExtendedState();
  if (extendedState === undefined) return 'does not show its vector registers';
  if (isFiltered && !passesFilters(tracee, call, instruction, signalReturn)) return 'may not make the call';
  if (!hasRoom(maps, Number(found[REG.rsp]!))) return 'has no room on its stack';
  const frame = buildSignalFrame({ registers, signalMask, extendedState, returnAddress: signalReturn });
  if (frame === undefined) return 'has vector registers of an unknown layout';
  if (!writeMemory(pid, frame.address, frame.bytes)) return 'has no room on its stack';
  const calling = registers.slice();
  calling[REG.rsp] = frame.address;
  calling[REG.rip] = instruction;
  calling[REG.rax] = BigInt(call.number);
  // Not in a system call: otherwise the kernel would restart the one that the thread was found in.
  calling[REG.origRax] = NO_SYSCALL;
  [REG.rdi, REG.rsi, REG.rdx, REG.r10, REG.r8, REG.r9].forEach((register, i) => {
    calling[register] = BigInt(call.args[i] ?? 0);
  });
  return { found, calling };
}

/** A filter may end QEMU for a call that it does not know. The frame's way back is a call as well. */
function passesFilters(
  tracee: Tracee,
  call: InjectedCall,
  instruction: bigint,
  signalReturn: bigint,
): boolean {
  const calls = [
    { number: call.number, instructionPointer: instruction + BigInt(SYSCALL_BYTES), args: call.args },
    { number: SYS_RT_SIGRETURN, instructionPointer: signalReturn + SIGNAL_RETURN_BYTES, args: [] },
  ];
  return tracee.readSeccompFilters().every((filter) => calls.every((each) => letsPass(filter, each)));
}

/** Runs the call, from the switch of registers on. @returns what the call returned */
function runCall(pid: number, tracee: Tracee, { found, calling }: Prepared): number | Refusal {
  const isAhead = (): boolean => {
    const present = tracee.readRegisters();
    return [REG.rip, REG.rsp, REG.rax, REG.origRax].every(
      (register) => present?.[register] === calling[register],
    );
  };
  /**
   * Undoes the switch when the process must not run on: the call would be made long after anybody wants it.
   */
  const takeBack = (why: Refusal): Refusal => {
    if (isAhead()) tracee.writeRegisters(found);
    return why;
  };
  for (let stops = 0; stops < MAX_STOPS; stops++) {
    const stop = tracee.runToSyscall();
    if (stop === undefined) {
      if (tracee.interrupt() !== undefined) takeBack('');
      throw silent(pid);
    }
    if (stop === 'ended') return 'has ended';
    if (stop === 'group-stop') return takeBack('is stopped by a signal');
    if (stop !== 'syscall') continue;
    const info = tracee.readSyscallInfo();
    // Handlers of signals make system calls as well.
    if (info?.isExit !== true || info.stackPointer !== calling[REG.rsp]) continue;
    if (info.instructionPointer === calling[REG.rip]! + BigInt(SYSCALL_BYTES)) return Number(info.value);
  }
  return takeBack('is stopped over and over');
}

/**
 * Whether a frame fits below the stack pointer, within memory of the thread's own that is not QEMU's heap.
 */
function hasRoom(maps: readonly Mapping[], stackPointer: number): boolean {
  return maps.some(
    ({ start, end, writable, shared, inode, name }) =>
      start + STACK_ROOM_BYTES <= stackPointer &&
      stackPointer <= end &&
      writable &&
      !shared &&
      inode === 0 &&
      name !== '[heap]',
  );
}

function silent(pid: number): CheckpointError {
  return refused(pid, 'a thread does not answer; is it frozen?', 'thaw it, or try again');
}

function refused(pid: number, why: string, hint: string): CheckpointError {
  return new CheckpointError('TRACKER_UNAVAILABLE', `process ${pid} cannot be interrupted safely: ${why}`, {
    hint,
    retryable: true,
    detail: { pid },
  });
}
