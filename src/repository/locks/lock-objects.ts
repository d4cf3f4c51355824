/** Looking for the small objects of locks, and removing them, where somebody else may do the same. */

import { isCheckpointError } from '../../errors.js';
import type { ChainKeys } from '../../format/chain-keys.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import { nonceOf } from './lock-record.js';

export async function exists(backend: StorageBackend, key: string, options: CallOptions): Promise<boolean> {
  try {
    await backend.stat(key, options);
    return true;
  } catch (error) {
    if (isCheckpointError(error, 'STORAGE_NOT_FOUND')) return false;
    throw error;
  }
}

export async function removeIfPresent(backend: StorageBackend, key: string): Promise<void> {
  try {
    await backend.remove(key);
  } catch (error) {
    if (!isCheckpointError(error, 'STORAGE_NOT_FOUND')) throw error;
  }
}

/** Removes a lock of somebody else, and its beats. */
export async function removeLock(
  backend: StorageBackend,
  keys: ChainKeys,
  key: string,
  options: CallOptions,
): Promise<void> {
  await removeIfPresent(backend, key);
  for (const beat of await backend.list(keys.beatsOf(nonceOf(key)), options))
    await removeIfPresent(backend, beat.key);
}
