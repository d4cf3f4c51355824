/**
 * Putting a disk back may write to a file that a later checkpoint of the chain needs as it is. That
 * checkpoint would lose its disk, and nobody would know before it is needed: such a restore is refused before
 * anything is touched.
 */

import { CheckpointError, isCheckpointError } from '../errors.js';
import type { Manifest } from '../format/manifest.js';
import type { Repository } from '../repository/repository.js';
import type { DisksOfManifest } from './forgotten-disks.js';

export interface RollbackRequest {
  readonly keepDisks: boolean;
  /** The restored VM has other disks than those that were recorded. */
  readonly hasOtherDisks?: boolean;
  readonly signal?: AbortSignal | undefined;
}

/**
 * @throws DISK_CHANGED naming the file and the checkpoint that needs it; REPO_DAMAGED for what `manifest`
 *   says of its disks
 */
export async function refuseRollbackOfNeeded(
  repository: Pick<Repository, 'checkpoints'>,
  manifest: Manifest,
  request: RollbackRequest,
  disksOf: DisksOfManifest,
): Promise<void> {
  if (request.keepDisks || request.hasOtherDisks === true || manifest.disks.length === 0) return;
  const disks = disksOf(manifest);
  const overwritten = manifest.disks.flatMap((snapshot) => disks.overwrites(snapshot) ?? []);
  if (overwritten.length === 0) return;
  const { manifests } = await repository.checkpoints(manifest.chain, { signal: request.signal });
  for (const later of manifests.filter(({ seq }) => seq > manifest.seq)) {
    const needed = neededBy(later, disksOf);
    const file = overwritten.find(({ path }) => needed.has(path));
    if (file === undefined) continue;
    const { path, instead } = file;
    throw new CheckpointError(
      'DISK_CHANGED',
      `rolling ${path} back to ${manifest.id} would destroy the disk of the later checkpoint ${later.id}, which froze this image`,
      {
        hint: `copy the older state out (${instead}), and restore with the copy as disk and --keep-disks`,
        detail: { path, checkpoint: later.id },
      },
    );
  }
}

/** A later checkpoint that cannot be restored, since what it says of its disks is damaged, needs nothing. */
function neededBy(later: Manifest, disksOf: DisksOfManifest): ReadonlySet<string> {
  return new Set(
    later.disks.flatMap((snapshot) => {
      try {
        return disksOf(later).needs(snapshot);
      } catch (error) {
        if (isCheckpointError(error, 'REPO_DAMAGED')) return [];
        throw error;
      }
    }),
  );
}
