/** Small records are looked at before they are read: what is in the place of one may be of any length. */

import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import { MAX_SEALED_BYTES } from '../../format/sealed-json.js';
import { damaged } from '../../records/damage.js';

/** @throws STORAGE_NOT_FOUND, REPO_DAMAGED for an object that is too long, and what the backend throws */
export async function loadSealed(
  backend: StorageBackend,
  key: string,
  options: CallOptions,
): Promise<Uint8Array> {
  const { sizeBytes } = await backend.stat(key, options);
  if (sizeBytes > MAX_SEALED_BYTES) throw damaged(key, `${sizeBytes} bytes are too long for a record`);
  return backend.load(key, undefined, options);
}
