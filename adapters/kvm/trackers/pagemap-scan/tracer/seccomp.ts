/**
 * What a seccomp filter makes of a system call, found out without making it: a sandbox may end the process
 * for a call that is not on its list. Filters are classic BPF over struct seccomp_data.
 * Sources: linux/{seccomp,filter,bpf_common}.h, seccomp(2).
 */

/** struct seccomp_data: number, architecture, instruction pointer, six arguments. */
const DATA_BYTES = 64;
const AUDIT_ARCH_X86_64 = 0xc000003e;
const INSTRUCTION_BYTES = 8;
const MEMORY_WORDS = 16;

/** Actions after which the process goes on by itself: the call is made, or fails. */
const HARMLESS_ACTIONS = [0x7fff0000, 0x7ffc0000, 0x00050000];
const ACTION_MASK = 0xffff0000;

const CLASS = { ld: 0, ldx: 1, st: 2, stx: 3, alu: 4, jmp: 5, ret: 6, misc: 7 } as const;

export interface FilteredCall {
  readonly number: number;
  readonly instructionPointer: bigint;
  readonly args: readonly number[];
}

/**
 * @param filter as PTRACE_SECCOMP_GET_FILTER gives it. @returns false also for a filter that is not
 * understood
 */
export function letsPass(filter: Uint8Array, { number, instructionPointer, args }: FilteredCall): boolean {
  const data = new DataView(new ArrayBuffer(DATA_BYTES));
  data.setUint32(0, number, true);
  data.setUint32(4, AUDIT_ARCH_X86_64, true);
  data.setBigUint64(8, instructionPointer, true);
  args.forEach((arg, i) => data.setBigUint64(16 + i * 8, BigInt(arg), true));
  const action = run(filter, data);
  return action !== undefined && HARMLESS_ACTIONS.includes((action & ACTION_MASK) >>> 0);
}

/** Jumps go forward only, so a program ends. @returns undefined for one that is not understood */
function run(filter: Uint8Array, data: DataView): number | undefined {
  const program = new DataView(filter.buffer, filter.byteOffset, filter.length);
  const memory = new Uint32Array(MEMORY_WORDS);
  let a = 0;
  let x = 0;
  for (let at = 0; at + INSTRUCTION_BYTES <= filter.length; at += INSTRUCTION_BYTES) {
    const code = program.getUint16(at, true);
    const k = program.getUint32(at + 4, true);
    switch (code & 7) {
      case CLASS.ret:
        return (code & 0x18) === 0x10 ? a : k;
      case CLASS.ld:
      case CLASS.ldx: {
        const value = load(code, k, data, memory);
        if (value === undefined) return undefined;
        if ((code & 7) === CLASS.ld) a = value;
        else x = value;
        break;
      }
      case CLASS.st:
        memory[k] = a;
        break;
      case CLASS.stx:
        memory[k] = x;
        break;
      case CLASS.alu: {
        const value = compute(code, a, (code & 8) === 0 ? k : x);
        if (value === undefined) return undefined;
        a = value;
        break;
      }
      case CLASS.jmp: {
        if ((code & 0xf0) === 0) {
          at += k * INSTRUCTION_BYTES;
          break;
        }
        const holds = compare(code, a, (code & 8) === 0 ? k : x);
        at += program.getUint8(holds ? at + 2 : at + 3) * INSTRUCTION_BYTES;
        break;
      }
      default:
        if ((code & 0xf8) === 0) x = a;
        else a = x;
    }
  }
  return undefined;
}

/** Immediate, absolute, from memory, or the length of the data. */
function load(code: number, k: number, data: DataView, memory: Uint32Array): number | undefined {
  switch (code & 0xe0) {
    case 0x00:
      return k;
    case 0x20:
      return k <= DATA_BYTES - 4 ? data.getUint32(k, true) : undefined;
    case 0x60:
      return memory[k];
    case 0x80:
      return DATA_BYTES;
    default:
      return undefined;
  }
}

function compute(code: number, a: number, operand: number): number | undefined {
  switch (code & 0xf0) {
    case 0x00:
      return (a + operand) >>> 0;
    case 0x10:
      return (a - operand) >>> 0;
    case 0x20:
      return Math.imul(a, operand) >>> 0;
    case 0x40:
      return (a | operand) >>> 0;
    case 0x50:
      return (a & operand) >>> 0;
    case 0x60:
      return (a << operand) >>> 0;
    case 0x70:
      return a >>> operand;
    case 0x80:
      return -a >>> 0;
    case 0xa0:
      return (a ^ operand) >>> 0;
    default:
      return undefined;
  }
}

function compare(code: number, a: number, operand: number): boolean {
  switch (code & 0xf0) {
    case 0x10:
      return a === operand;
    case 0x20:
      return a > operand;
    case 0x30:
      return a >= operand;
    default:
      return (a & operand) !== 0;
  }
}
