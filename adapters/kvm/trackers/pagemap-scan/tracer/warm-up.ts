/**
 * Code that runs for the first time takes several times as long as later, and a thread of QEMU stands still
 * for all of it. So what runs in that time is run before, on a thread that does not exist and on memory of
 * this process.
 */

import { addressOf } from '../../../../../src/ffi/libc.js';
import { readMemory } from '../../../memory/process-memory.js';
import * as ptrace from './ptrace.js';
import { buildSignalFrame, resumed } from './signal-frame.js';

/** The time that a thread stands still does not get shorter with more of them. */
const ROUNDS = 60;
/** The kernel knows no thread 0: every call for it fails with ESRCH. */
const NOBODY = 0;
const XSTATE_BYTES = 2696;

export function warmUp(): void {
  const memory = new Uint8Array(XSTATE_BYTES * 2);
  const registers = new BigUint64Array(ptrace.REG_COUNT).fill(addressOf(memory));
  for (let round = 0; round < ROUNDS; round++) {
    ptrace.interrupt(NOBODY);
    ptrace.nextStop(NOBODY);
    ptrace.readRegisters(NOBODY);
    ptrace.readSignalMask(NOBODY);
    ptrace.readExtendedState(NOBODY);
    ptrace.writeRegisters(NOBODY, registers);
    ptrace.runToSyscall(NOBODY, 0);
    ptrace.readSyscallInfo(NOBODY);
    ptrace.detach(NOBODY);
    readMemory(process.pid, Number(addressOf(memory)), new Uint8Array(2));
    const frame = buildSignalFrame({
      registers: resumed(registers) ?? registers,
      signalMask: 0n,
      extendedState: new Uint8Array(XSTATE_BYTES),
      returnAddress: 0n,
    });
    if (frame !== undefined)
      ptrace.writeMemory(process.pid, addressOf(memory), frame.bytes.subarray(0, memory.length));
  }
}
