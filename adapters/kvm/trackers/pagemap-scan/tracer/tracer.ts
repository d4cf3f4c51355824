/** Cairn's side of the tracer (see `tracer-main.ts`): one process for each system call inside QEMU. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';

import { CheckpointError } from '../../../../../src/errors.js';
import type { InjectResult } from './inject.js';

const PROGRAM = fileURLToPath(new URL('./tracer-main.js', import.meta.url));
/**
 * Starting Node.js takes some 50 ms, far more on a machine that swaps. A tracer that somebody stops is killed
 * after this long.
 */
const LIMIT_MS = 20_000;

export interface RemoteCall {
  readonly number: number;
  readonly args: readonly number[];
  /** The call is made only if this descriptor still has this inode. */
  readonly descriptor?: { readonly number: number; readonly inode: number };
}

/**
 * Has a thread of QEMU make a system call.
 * @returns what the call returned: a negative errno when it failed
 * @throws VM_GONE, VM_PERMISSION, TRACKER_FAILED, TRACKER_UNAVAILABLE when no thread is in a state in which
 *   this is safe
 */
export async function callInQemu(pid: number, call: RemoteCall): Promise<number> {
  const { CAIRN_TRACER_FAULT_POINT: faultPoint } = process.env;
  // Not by `host/run-program.ts`: the tracer outlives this process, and a checkpoint needs no other program, so
  // that library is not loaded for it.
  const tracer = spawn(process.execPath, [PROGRAM, String(pid), JSON.stringify(call)], {
    // A session of its own: it finishes what it has begun when a terminal stops or ends Cairn's process
    // group.
    detached: true,
    stdio: ['ignore', 'pipe', 'ignore'],
    cwd: '/',
    env: faultPoint === undefined ? {} : { CAIRN_TRACER_FAULT_POINT: faultPoint },
    timeout: LIMIT_MS,
    killSignal: 'SIGKILL',
  });
  const [stdout] = await Promise.all([text(tracer.stdout), once(tracer, 'close')]);
  if (stdout === '') {
    throw new CheckpointError('TRACKER_UNAVAILABLE', `the tracer of process ${pid} was killed`, {
      hint: 'try again',
      retryable: true,
    });
  }
  const answer = JSON.parse(stdout) as InjectResult | { readonly error: unknown };
  if ('error' in answer) throw CheckpointError.fromJSON(answer.error);
  return answer.value;
}
