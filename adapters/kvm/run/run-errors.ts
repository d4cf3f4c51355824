/** What goes wrong when a VM is to run again, in words for the operator. */

import { CheckpointError, describeError } from '../../../src/errors.js';

export function notResumed(why: string, cause?: unknown): CheckpointError {
  return new CheckpointError('VM_NOT_RESUMED', `the VM does not run after cont: ${why}`, {
    ...(cause === undefined ? {} : { cause }),
    hint: 'look at the VM in its monitor (info status)',
  });
}

/**
 * QEMU's main loop waits in `stop` for requests to a disk. It carries out after that, in order, what was sent
 * to it.
 */
export function unanswered(cause: unknown): CheckpointError {
  const why = describeError(cause);
  return new CheckpointError('VM_NOT_RESUMED', `QEMU does not answer, \`cont\` neither: ${why}`, {
    cause,
    hint: 'it probably waits for a disk whose storage hangs; as soon as that answers, QEMU or the guard process of Cairn resumes the VM',
  });
}

export function resumedByOthers(): CheckpointError {
  return new CheckpointError(
    'VM_STATE',
    'the VM was resumed by somebody else while it was paused for a checkpoint',
    {
      hint: 'the checkpoint is dropped; find out who sends `cont` or `virsh resume` to this VM',
      retryable: true,
    },
  );
}
