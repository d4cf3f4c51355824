/**
 * A thread that this process traces, and whether it stands still: only then it can be read, changed and let
 * go of.
 */

import { CheckpointError } from '../../../../../src/errors.js';
import * as raw from './ptrace.js';

/** Signals that may come in before the stop that is asked for. */
const MAX_SIGNALS = 16;

export class Tracee {
  readonly #thread: number;
  #isStopped = false;
  /** The signal at which the thread stopped; it is passed on when the thread goes on. */
  #signal = 0;

  private constructor(thread: number) {
    this.#thread = thread;
  }

  /** @returns undefined when there is no such thread. @throws VM_PERMISSION */
  static seize(pid: number, thread: number): Tracee | undefined {
    const errno = raw.seize(thread);
    if (errno === 'ESRCH') return undefined;
    if (errno === '') return new Tracee(thread);
    throw new CheckpointError('VM_PERMISSION', `not allowed to trace process ${pid}: ${errno}`, {
      hint: 'run as root or with CAP_SYS_PTRACE; see kernel.yama.ptrace_scope; a debugger on QEMU stands in the way as well',
      detail: { pid, errno },
    });
  }

  /** Signals that come in are passed on. @returns the kind of stop; undefined when none came in time */
  interrupt(): raw.Stop['kind'] | undefined {
    if (raw.interrupt(this.#thread) !== '') return 'ended';
    for (let signals = 0; signals < MAX_SIGNALS; signals++) {
      const stop = this.#next();
      if (stop !== 'signal' && stop !== 'syscall') return stop;
      this.#isStopped = false;
      raw.resume(this.#thread, this.#takeSignal());
    }
    return undefined;
  }

  /**
   * Goes on to the next entry or exit of a system call, or whatever stops it before.
   * @returns as `interrupt`
   */
  runToSyscall(): raw.Stop['kind'] | undefined {
    this.#isStopped = false;
    if (raw.runToSyscall(this.#thread, this.#takeSignal()) !== '') return 'ended';
    return this.#next();
  }

  readRegisters(): BigUint64Array | undefined {
    return raw.readRegisters(this.#thread);
  }

  /** @returns false when the thread has ended */
  writeRegisters(registers: BigUint64Array): boolean {
    return raw.writeRegisters(this.#thread, registers) === '';
  }

  readExtendedState(): Uint8Array | undefined {
    return raw.readExtendedState(this.#thread);
  }

  readSignalMask(): bigint | undefined {
    return raw.readSignalMask(this.#thread);
  }

  readSeccompFilters(): readonly Uint8Array[] {
    return raw.readSeccompFilters(this.#thread);
  }

  readSyscallInfo(): raw.SyscallInfo | undefined {
    return raw.readSyscallInfo(this.#thread);
  }

  /** Does nothing for a thread that does not stand still: the end of this process lets go of that one. */
  letGo(): void {
    if (!this.#isStopped) return;
    this.#isStopped = false;
    raw.detach(this.#thread, this.#takeSignal());
  }

  #next(): raw.Stop['kind'] | undefined {
    const stop = raw.nextStop(this.#thread);
    this.#isStopped = stop !== undefined && stop.kind !== 'ended';
    this.#signal = stop?.kind === 'signal' ? stop.signal : 0;
    return stop?.kind;
  }

  #takeSignal(): number {
    const signal = this.#signal;
    this.#signal = 0;
    return signal;
  }
}
