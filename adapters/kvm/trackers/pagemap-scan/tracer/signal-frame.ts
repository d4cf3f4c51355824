/**
 * The frame that the kernel writes to a thread's stack before it runs a signal handler, here written by the
 * tracer: with it the kernel itself, by rt_sigreturn(2), puts a thread back into the state it was interrupted
 * in. Nobody else is needed for that.
 *
 *     rsp of the thread ->  +---------------------+  its own data is above
 *                           | red zone, 128 bytes |  may hold data of the function that runs
 *                           +---------------------+
 *                           | vector registers    |  layout of XSAVE, at a multiple of 64, ended by
 *                           |                     |  FP_XSTATE_MAGIC2
 *                           +---------------------+
 *                           | siginfo, not used   |
 *                           | ucontext            |  general registers, signal mask, address of the vector
 *                           |                     |  registers
 *     rsp of the call  ->   | return address      |  of `mov $15, %rax; syscall`: rt_sigreturn
 *                           +---------------------+  handlers of signals that come in meanwhile go below
 *
 * Sources: arch/x86/include/uapi/asm/{sigcontext,ucontext}.h, arch/x86/include/asm/sigframe.h,
 * arch/x86/kernel/{signal_64,fpu/signal}.c.
 */

import { REG } from './ptrace.js';

const RED_ZONE_BYTES = 128n;
const XSTATE_ALIGNMENT = 64n;

const UCONTEXT_AT = 8;
const STACK_FLAGS_AT = UCONTEXT_AT + 24;
const REGISTERS_AT = UCONTEXT_AT + 40;
const SEGMENTS_AT = REGISTERS_AT + 18 * 8;
const XSTATE_POINTER_AT = REGISTERS_AT + 184;
const SIGNAL_MASK_AT = UCONTEXT_AT + 296;
/** Length of the frame, with a ucontext of 304 bytes and a siginfo of 128. */
const FRAME_BYTES = UCONTEXT_AT + 304 + 128;

/** The order of struct sigcontext, up to the segment registers. */
const SAVED = [
  ...[REG.r8, REG.r9, REG.r10, REG.r11, REG.r12, REG.r13, REG.r14, REG.r15],
  ...[REG.rdi, REG.rsi, REG.rbp, REG.rbx, REG.rdx, REG.rax, REG.rcx, REG.rsp, REG.rip, REG.flags],
];

/** UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS: what the kernel sets for 64-bit code. */
const FLAGS = 7n;
/**
 * Flags of an alternate signal stack that cannot be: rt_sigreturn sets the alternate stack to what the frame
 * says, and ignores that it was refused (EINVAL). So the thread keeps the one it has, which nobody can read
 * from outside.
 */
const KEEP_ALTERNATE_STACK = 0x7f;

/**
 * Place in the legacy area of the mask of features that ptrace shows, where a frame has struct _fpx_sw_bytes.
 */
const SOFTWARE_BYTES_AT = 464;
const FEATURES_IN_USE_AT = 512;
const MIN_XSTATE_BYTES = 512 + 64;
const FP_XSTATE_MAGIC1 = 0x46505853;
const FP_XSTATE_MAGIC2 = 0x46505845;
/**
 * AMX's tiles: the last 8 KiB of what ptrace shows, and no part of a frame unless the thread has asked for
 * the tiles.
 */
const TILES = 1n << 18n;
const TILES_BYTES = 8192;

/** Where the call was interrupted: what ppoll, futex and so on return to the kernel, not to a program. */
const ERESTARTSYS = -512n;
const ERESTARTNOHAND = -514n;
const ERESTART_RESTARTBLOCK = -516n;
export const SYSCALL_BYTES = 2;

export interface SignalFrame {
  /** Where `bytes` belong; the stack pointer of the call. */
  readonly address: bigint;
  readonly bytes: Uint8Array;
}

export interface FrameParts {
  /** Registers to be put back: `resumed` of those that the thread was found with. */
  readonly registers: BigUint64Array;
  readonly signalMask: bigint;
  /** What PTRACE_GETREGSET with NT_X86_XSTATE gave. */
  readonly extendedState: Uint8Array;
  /** Address of code that calls rt_sigreturn. */
  readonly returnAddress: bigint;
}

/**
 * What the thread goes on with when nobody meddles: a call that the stop has interrupted is made once more,
 * as the kernel does it when no handler runs.
 * @returns undefined for a call that only the kernel itself can continue (nanosleep, poll with a time limit):
 *   rt_sigreturn would end it
 */
export function resumed(registers: BigUint64Array): BigUint64Array | undefined {
  const result = BigInt.asIntN(64, registers[REG.rax]!);
  if (result === ERESTART_RESTARTBLOCK) return undefined;
  const next = registers.slice();
  if (result <= ERESTARTSYS && result >= ERESTARTNOHAND) {
    next[REG.rax] = registers[REG.origRax]!;
    next[REG.rip] = registers[REG.rip]! - BigInt(SYSCALL_BYTES);
  }
  return next;
}

/** @returns undefined when the vector registers are not in a layout that a frame can hold */
export function buildSignalFrame({
  registers,
  signalMask,
  extendedState,
  returnAddress,
}: FrameParts): SignalFrame | undefined {
  const vectors = vectorRegisters(extendedState);
  if (vectors === undefined) return undefined;
  const top = registers[REG.rsp]! - RED_ZONE_BYTES;
  const vectorsAt = alignDown(top - BigInt(vectors.length), XSTATE_ALIGNMENT);
  // The stack pointer is where a `call` leaves it: a multiple of 16, less 8.
  const address = alignDown(vectorsAt - BigInt(FRAME_BYTES), 16n) - 8n;
  const bytes = new Uint8Array(Number(vectorsAt - address) + vectors.length);
  bytes.set(vectors, Number(vectorsAt - address));
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, returnAddress, true);
  view.setBigUint64(UCONTEXT_AT, FLAGS, true);
  view.setInt32(STACK_FLAGS_AT, KEEP_ALTERNATE_STACK, true);
  SAVED.forEach((register, i) => view.setBigUint64(REGISTERS_AT + i * 8, registers[register]!, true));
  view.setUint16(SEGMENTS_AT, Number(registers[REG.cs]!), true);
  view.setUint16(SEGMENTS_AT + 6, Number(registers[REG.ss]!), true);
  view.setBigUint64(XSTATE_POINTER_AT, vectorsAt, true);
  view.setBigUint64(SIGNAL_MASK_AT, signalMask, true);
  return { address, bytes };
}

/**
 * What ptrace shows, made into what rt_sigreturn takes: the kernel's note of size and features, and the mark
 * at the end.
 */
function vectorRegisters(extendedState: Uint8Array): Uint8Array | undefined {
  if (extendedState.length < MIN_XSTATE_BYTES) return undefined;
  const shown = new DataView(extendedState.buffer, extendedState.byteOffset, extendedState.length);
  const features = shown.getBigUint64(SOFTWARE_BYTES_AT, true);
  if ((shown.getBigUint64(FEATURES_IN_USE_AT, true) & TILES) !== 0n) return undefined;
  const sizeBytes = extendedState.length - ((features & TILES) === 0n ? 0 : TILES_BYTES);
  if (sizeBytes < MIN_XSTATE_BYTES) return undefined;
  const bytes = new Uint8Array(sizeBytes + 4);
  bytes.set(extendedState.subarray(0, sizeBytes));
  bytes.fill(0, SOFTWARE_BYTES_AT, FEATURES_IN_USE_AT);
  const view = new DataView(bytes.buffer);
  view.setUint32(SOFTWARE_BYTES_AT, FP_XSTATE_MAGIC1, true);
  view.setUint32(SOFTWARE_BYTES_AT + 4, sizeBytes + 4, true);
  view.setBigUint64(SOFTWARE_BYTES_AT + 8, features & ~TILES, true);
  view.setUint32(SOFTWARE_BYTES_AT + 16, sizeBytes, true);
  view.setUint32(sizeBytes, FP_XSTATE_MAGIC2, true);
  return bytes;
}

function alignDown(value: bigint, alignment: bigint): bigint {
  return value - (value % alignment);
}
