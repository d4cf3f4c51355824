/** What others are told of a VM whose rewind was cut off: its memory is of no moment. */

import { CheckpointError } from '../../../src/errors.js';
import type { RewindNote } from '../../../src/hypervisor/rewind.js';
import type { VmHazard } from '../../../src/hypervisor/vm.js';

const CODE = 'REWIND_UNFINISHED';

export function unfinishedHazards(note: RewindNote | undefined): readonly VmHazard[] {
  if (note === undefined) return [];
  return [{ code: CODE, effect: 'note', text: textOf(note), remedy: remedyOf(note) }];
}

/** @throws REWIND_UNFINISHED when there is a note */
export function refuseUnfinished(note: RewindNote | undefined): void {
  if (note === undefined) return;
  throw new CheckpointError(CODE, `no checkpoint: ${textOf(note)}`, {
    hint: remedyOf(note),
    detail: { targetId: note.targetId, chain: note.chain },
  });
}

function textOf({ targetId }: RewindNote): string {
  return `a rewind of this VM to checkpoint ${targetId} was cut off, and its memory is of no moment: it must not run`;
}

function remedyOf({ targetId }: RewindNote): string {
  return `cairn rewind VM ${targetId} takes it up and finishes it; one to another checkpoint of the chain does as well`;
}
