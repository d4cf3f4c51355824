/** A new QEMU that waits for its stream is made what the checkpoint has recorded, or is refused. */

import { CheckpointError, describeError, isCheckpointError } from '../../../src/errors.js';
import type { Monitor } from '../../qemu/monitor.js';
import { applyLimits } from '../inspect/disk-limits.js';
import { listPresentDisks, strayDisks, type ListedDisk } from '../inspect/present-disks.js';
import { applySettings } from '../inspect/present-objects.js';
import type { KvmRestoreRequest } from './options.js';
import type { PlannedStart } from './start.js';
import type { StoodIn } from './stand-ins.js';

interface Restored {
  readonly start: PlannedStart;
  readonly stoodIn: StoodIn;
  readonly request: Pick<KvmRestoreRequest, 'setArgs' | 'dropArgs'>;
}

/** Edits by which the operator gives limits. */
const EDIT_OF_LIMITS = /throttl|\b(?:iops|bps)[_=-]/;
/** Edits by which the operator gives objects. */
const EDIT_OF_OBJECTS = /^--?object\b/;

/**
 * Before it is given anything, and before any disk is rolled back: looks at what it has open, then sets what can be
 * changed while a VM runs and comes with no stream. What the operator has edited stays as the operator has it.
 * @throws RESTORE_FAILED, VM_GONE
 */
export async function asRecorded(monitor: Monitor, { start, stoodIn, request }: Restored): Promise<void> {
  if (start.presentDisks === undefined) return;
  const edits = [...(request.setArgs ?? []), ...(request.dropArgs ?? [])];
  const found = await listPresentDisks(monitor);
  await refuseOtherDisks(found, { start, stoodIn }, edits);
  try {
    if (!edits.some((edit) => EDIT_OF_LIMITS.test(edit)))
      await applyLimits(monitor, start.presentDisks, found);
    if (!edits.some((edit) => EDIT_OF_OBJECTS.test(edit))) await applySettings(monitor, start.presentObjects);
  } catch (cause) {
    if (!isCheckpointError(cause, 'QMP_COMMAND')) throw cause;
    throw new CheckpointError(
      'RESTORE_FAILED',
      `the new QEMU does not take the limits of the checkpoint: ${describeError(cause)}`,
      { cause, hint: 'give it limits of your own, such as --set-arg=-drive=...,throttling.iops-total=N' },
    );
  }
}

async function refuseOtherDisks(
  found: readonly ListedDisk[],
  { start, stoodIn }: Pick<Restored, 'start' | 'stoodIn'>,
  edits: readonly string[],
): Promise<void> {
  const strays = await strayDisks(start.presentDisks ?? [], found, {
    cwd: start.cwd,
    instead: stoodIn.instead,
    edits,
  });
  if (strays.length === 0) return;
  throw new CheckpointError(
    'RESTORE_FAILED',
    `the new QEMU has other disks than the VM had at the checkpoint: ${strays.join('; ')}`,
    {
      hint: 'name what it is to have with --set-arg; cairn show prints the recorded command line',
      detail: { disks: [...strays] },
    },
  );
}
