/** Errors that all drivers of snapshots outside of the hypervisor have in common. */

import { CheckpointError } from '../../src/errors.js';

const KEEP_DISKS_HINT =
  '--keep-disks restores memory and devices alone, which is only right with disks of the same instant';

/**
 * @param by whose snapshots they are
 * @param possiblyPresent what is, or may be, left behind
 * @param hint how to look for it
 */
export function snapshotFailed(
  by: string,
  why: string,
  possiblyPresent: readonly string[],
  hint: string,
): CheckpointError {
  const left = possiblyPresent.length === 0 ? '' : `; left behind: ${possiblyPresent.join(', ')}`;
  return new CheckpointError('DISK_SNAPSHOT_FAILED', `snapshot by ${by}: ${why}${left}`, {
    ...(possiblyPresent.length === 0 ? {} : { hint }),
    detail: { possiblyPresent },
  });
}

/** The disk of a checkpoint cannot be had. */
export function diskLost(text: string, hint = KEEP_DISKS_HINT): CheckpointError {
  return new CheckpointError('RESTORE_FAILED', text, { hint });
}
