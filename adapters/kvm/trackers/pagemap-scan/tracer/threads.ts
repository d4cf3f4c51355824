/**
 * Threads of a process that wait in a system call, those that can be interrupted with the least effect first.
 * Reads /proc only.
 */

import { readdirSync, readFileSync } from 'node:fs';

import { CheckpointError } from '../../../../../src/errors.js';

export interface WaitingThread {
  readonly id: number;
  readonly stackPointer: number;
  /**
   * The mask in force; another one than outside of the call when the call has brought one for its own length
   * (sigsuspend).
   */
  readonly signalMask: bigint;
  /** The return addresses of the thread are kept a second time, on a shadow stack (CET). */
  readonly hasShadowStack: boolean;
  /** A seccomp filter looks at the system calls of the thread. */
  readonly isFiltered: boolean;
}

export interface Waiting {
  readonly threads: readonly WaitingThread[];
  /** At least one thread is stopped, by SIGSTOP or the like. */
  readonly isStopped: boolean;
}

/**
 * Calls that nobody notices an interruption of, from the best on: futex of an idle worker, ppoll and read of
 * a loop. An ioctl is last: it may be KVM_RUN, where it costs the guest an exit.
 */
const BEST_CALLS = [202, 271, 0];
const SYS_IOCTL = 16;

/** @throws VM_GONE */
export function waitingThreads(pid: number): Waiting {
  let names: readonly string[];
  try {
    names = readdirSync(`/proc/${pid}/task`);
  } catch (cause) {
    throw new CheckpointError('VM_GONE', `process ${pid} has ended`, { cause });
  }
  let isStopped = false;
  const ranked = names.flatMap((name) => {
    try {
      const base = `/proc/${pid}/task/${name}`;
      const status = readFileSync(`${base}/status`, 'latin1');
      const state = /^State:\s*(\S)/m.exec(status)?.[1];
      isStopped ||= state === 'T';
      if (state !== 'S') return [];
      // "number arguments... sp pc", "running", or "-1 sp pc" when it sleeps outside of a system call.
      const call = readFileSync(`${base}/syscall`, 'latin1').trim().split(' ');
      const stackPointer = Number(call[7] ?? '0');
      // The kernel's own threads of the process (vhost, io_uring) have no stack.
      if (!/^\d/.test(call[0]!) || stackPointer === 0) return [];
      const thread: WaitingThread = {
        id: Number(name),
        stackPointer,
        signalMask: BigInt(`0x${/^SigBlk:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? '0'}`),
        isFiltered: /^Seccomp:\s*2/m.test(status),
        hasShadowStack: /^x86_Thread_features:.*\bshstk\b/m.test(status),
      };
      return [{ thread, rank: rankOf(Number(call[0])) }];
    } catch {
      // Ended meanwhile.
      return [];
    }
  });
  return { threads: ranked.sort((a, b) => a.rank - b.rank).map(({ thread }) => thread), isStopped };
}

function rankOf(call: number): number {
  const best = BEST_CALLS.indexOf(call);
  if (best >= 0) return best;
  return call === SYS_IOCTL ? BEST_CALLS.length + 1 : BEST_CALLS.length;
}
