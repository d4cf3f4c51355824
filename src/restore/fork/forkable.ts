/** Checkpoints that are not forked, whatever their hypervisor. */

import { CheckpointError } from '../../errors.js';
import type { Manifest } from '../../format/manifest.js';

/** @throws FORK_REFUSED */
export function checkForkable({ id, frozen, deviceState }: Manifest): void {
  if (frozen !== undefined) {
    throw refused('FROZEN_GUEST', `in checkpoint ${id} the file systems of the guest are frozen`, {
      hint: 'each child would have to be thawed by its agent: fork one that was taken without --freeze',
    });
  }
  if (deviceState === null)
    throw refused('NO_DEVICE_STATE', `checkpoint ${id} has no device state`, { hint: 'fork another one' });
}

function refused(reason: string, text: string, more: { readonly hint: string }): CheckpointError {
  return new CheckpointError('FORK_REFUSED', `no fork: ${text}`, { ...more, detail: { reason } });
}
