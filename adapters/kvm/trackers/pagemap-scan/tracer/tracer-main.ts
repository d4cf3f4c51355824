/**
 * The tracer: a process of its own for one system call inside QEMU (`inject.ts`). Its end lets go of whatever
 * it still traces, so that a thread which does not answer, or a Cairn that hangs, leaves nothing of QEMU in a
 * tracing stop.
 *
 *     argv    process id of QEMU, and the call as JSON: RemoteCall of `tracer.ts`
 *     stdout  one line of JSON: InjectResult, or the error
 */

import { CheckpointError, isCheckpointError } from '../../../../../src/errors.js';
import { inodeOf } from '../arming.js';
import { inject, type InjectedCall, type InjectResult } from './inject.js';
import { countCalls } from './ptrace.js';
import type { RemoteCall } from './tracer.js';
import { warmUp } from './warm-up.js';

const [pid = '', call = ''] = process.argv.slice(2);
warmUp();
countCalls();
let answer: unknown;
try {
  answer = await run(Number(pid), JSON.parse(call) as RemoteCall);
} catch (error) {
  answer = {
    error: isCheckpointError(error) ? error.toJSON() : { code: 'TRACKER_FAILED', message: String(error) },
  };
}
process.stdout.write(`${JSON.stringify(answer)}\n`);

function run(qemu: number, { number, args, descriptor }: RemoteCall): Promise<InjectResult> {
  const injected: InjectedCall = { number, args };
  if (descriptor === undefined) return inject(qemu, injected);
  const before = (): void => {
    // The number may have been given to another file only if QEMU closed ours; it stands still while this
    // looks.
    if (inodeOf(qemu, descriptor.number) === descriptor.inode) return;
    throw new CheckpointError(
      'TRACKER_FAILED',
      `descriptor ${descriptor.number} of QEMU is not the tracker's any more`,
    );
  };
  return inject(qemu, { ...injected, before });
}
