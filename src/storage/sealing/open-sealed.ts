/** Opens a repository whose storage has the object `keys`. Loaded only for such a one. */

import { CheckpointError, isCheckpointError } from '../../errors.js';
import type { CallOptions, StorageBackend } from '../backend.js';
import { SettledBackend } from '../settled-backend.js';
import { KEYS_KEY } from '../keys.js';
import { encodeKeys, MAX_KEYS_BYTES, newKeys, openKeys, type Unlocked } from './key-slots.js';
import { SealedBackend } from './sealed-backend.js';
import type { Secret } from './secret.js';
import { damaged } from '../../records/damage.js';

/** @throws KEY_WRONG, REPO_DAMAGED, REPO_VERSION, and what the backend throws */
export async function unlock(backend: StorageBackend, secret: Secret): Promise<StorageBackend> {
  return new SealedBackend(backend, (await loadKeys(backend, secret)).ring);
}

export async function loadKeys(backend: StorageBackend, secret: Secret): Promise<Unlocked> {
  return openKeys(await loadKeysBytes(backend), secret);
}

export async function loadKeysBytes(backend: StorageBackend): Promise<Uint8Array> {
  if ((await backend.stat(KEYS_KEY)).sizeBytes > MAX_KEYS_BYTES) throw damaged(KEYS_KEY, 'it is too long');
  return backend.load(KEYS_KEY);
}

/**
 * Makes the keys of a new repository; those that an `init` has left which was cut off are used when the secret opens
 * them.
 * @throws REPO_EXISTS when what is there is not encrypted, KEY_WRONG, and what the backend throws
 */
export async function seal(backend: StorageBackend, secret: Secret, label: string): Promise<StorageBackend> {
  // A repository in the clear stays one, since its objects are.
  if ((await backend.list('config')).length > 0 && (await backend.list(KEYS_KEY)).length === 0)
    throw new CheckpointError(
      'REPO_EXISTS',
      `there is a repository in ${backend.properties.location} already`,
    );
  const keys = await newKeys(secret, label);
  try {
    await SettledBackend.of(backend).save(KEYS_KEY, encodeKeys(keys));
    return new SealedBackend(backend, keys.ring);
  } catch (error) {
    if (!isCheckpointError(error, 'STORAGE_EXISTS')) throw error;
    return unlock(backend, secret);
  }
}

/** Puts changed keys in the place of those that are there. One command at a time. */
export async function saveKeys(
  backend: StorageBackend,
  keys: Unlocked,
  options: CallOptions = {},
): Promise<void> {
  await backend.replace(KEYS_KEY, encodeKeys(keys), options);
}
