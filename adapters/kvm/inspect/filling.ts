/**
 * Keeps away from a VM whose memory is still being filled. Its pages cannot be read from outside: what is missing is not
 * zero, and reading it waits for the page server. Nor can writes be tracked, because its memory is registered with
 * QEMU's own userfaultfd.
 */

import { CheckpointError } from '../../../src/errors.js';
import { fillingNoteOf, isServed, type FillingNote } from '../../../src/host/filling-note.js';

/** @throws VM_FILLING, which passes by itself as long as a page server is at work */
export async function refuseFilling(runtimeDir: string, is: (note: FillingNote) => boolean): Promise<void> {
  const note = fillingNoteOf(runtimeDir, is);
  if (note === undefined) return;
  const { vmAddress, checkpointId, donePages, totalPages, damage, isAwaited, repository } = note;
  const served = await isServed(note);
  const percent = totalPages === 0 ? 100 : Math.floor((100 * donePages) / totalPages);
  const problem = typeof damage.message === 'string' ? damage.message : '';
  const how =
    problem !== ''
      ? `${isAwaited ? 'it waits for' : 'it will wait for'} what cannot be read: ${problem}`
      : served
        ? `${percent} % of it are there`
        : 'no page server is at work, so it waits';
  throw new CheckpointError(
    'VM_FILLING',
    `the memory of ${vmAddress} is still being filled from checkpoint ${checkpointId} of ${repository}: ${how}`,
    {
      hint:
        served && problem === ''
          ? 'wait until it is done; cairn doctor says how far it is'
          : `cairn restore --resume ${vmAddress} starts another page server`,
      retryable: true,
      detail: { vmAddress, checkpointId, donePages, totalPages, served, awaited: isAwaited },
    },
  );
}
