/**
 * Readers take no lock, so a checkpoint may be forgotten while it is read. Tells that from damage: by looking
 * at its manifest again.
 */

import { CheckpointError, isCheckpointError } from '../../errors.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import { manifestKey, type Manifest } from '../../format/manifest.js';

export function checkpointGone(key: string, cause: unknown): CheckpointError {
  return new CheckpointError('CHECKPOINT_GONE', `${key} was forgotten while it was being read`, {
    hint: '"cairn list" shows what is there now',
    detail: { key },
    cause,
  });
}

/**
 * Runs `work`.
 * @throws CHECKPOINT_GONE in place of REPO_DAMAGED when there is no such checkpoint any more; else what
 *   `work` throws
 */
export async function orGone<T>(
  backend: StorageBackend,
  manifest: Pick<Manifest, 'chain' | 'seq' | 'id'>,
  options: CallOptions,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!isCheckpointError(error, 'REPO_DAMAGED')) throw error;
    const key = manifestKey(manifest);
    if (await isAbsent(backend, key, options)) throw checkpointGone(key, error);
    throw error;
  }
}

/** Answers false as well when it cannot be told. */
export async function isAbsent(backend: StorageBackend, key: string, options: CallOptions): Promise<boolean> {
  try {
    await backend.stat(key, options);
    return false;
  } catch (error) {
    return isCheckpointError(error, 'STORAGE_NOT_FOUND');
  }
}
