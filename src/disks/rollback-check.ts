/**
 * Rolling a disk back to an internal snapshot writes to its image. When a later checkpoint of the chain has frozen that image, it would
 * lose its disk, and nobody would know before it is needed: such a restore is refused before anything is touched.
 */

import { resolve } from 'node:path';

import { CheckpointError } from '../errors.js';
import type { RestoreRequest } from '../hypervisor/restore.js';
import type { Manifest } from '../format/manifest.js';
import type { Repository } from '../repository/repository.js';

/** @throws DISK_CHANGED naming the image and the checkpoint that needs it */
export async function refuseRollbackOfFrozen(
  repository: Pick<Repository, 'checkpoints'>,
  manifest: Manifest,
  request: RestoreRequest,
): Promise<void> {
  const rolledBack = manifest.disks.filter(({ mode }) => mode === 'internal');
  // With --disk the images are others than those that were recorded.
  if (request.keepDisks || rolledBack.length === 0 || (request.edits?.diskPaths.length ?? 0) > 0) return;
  const written = new Set(rolledBack.map(({ path }) => absolute(manifest, path)));
  const { manifests } = await repository.checkpoints(manifest.chain, { signal: request.signal });
  for (const later of manifests.filter(({ seq }) => seq > manifest.seq)) {
    const path = frozenPaths(later).find((frozen) => written.has(frozen));
    if (path === undefined) continue;
    throw new CheckpointError(
      'DISK_CHANGED',
      `rolling ${path} back to ${manifest.id} would destroy the disk of the later checkpoint ${later.id}, which froze this image`,
      {
        hint:
          `copy the older state out (qemu-img convert -l snapshot.name=cairn-${manifest.id} -O qcow2 ${path} NEW), and restore with ` +
          'the copy as disk and --keep-disks',
        detail: { path, checkpoint: later.id },
      },
    );
  }
}

function frozenPaths(manifest: Manifest): readonly string[] {
  return manifest.disks.flatMap(({ mode, path, frozen = [] }) =>
    mode === 'external' ? [absolute(manifest, path), ...frozen.map((layer) => layer.path)] : [],
  );
}

/** Paths are recorded as the hypervisor names them, which may be relative to its folder. */
function absolute({ machine }: Manifest, path: string): string {
  return resolve(typeof machine.cwd === 'string' ? machine.cwd : '/', path);
}
