/** Finds and reads the manifests of a chain. One that is damaged does not hide the others. */

import { isCheckpointError } from '../../errors.js';
import type { CallOptions, StorageBackend, StoredObject } from '../../storage/backend.js';
import { idOfKey, seqOfKey, type ChainKeys } from '../../format/chain-keys.js';
import { asDamagedObject, damaged, type DamagedObject } from '../../records/damage.js';
import { decodeManifest, type Manifest } from '../../format/manifest.js';
import { MAX_SEALED_BYTES } from '../../format/sealed-json.js';

export interface CheckpointList {
  /** Manifests sorted by chain, then in the order of writing: the newest one is last. */
  readonly manifests: readonly Manifest[];
  /** Objects in the place of manifests that are none, or that this version cannot read. */
  readonly damaged: readonly DamagedObject[];
}

/** Objects in the place of manifests, in the order of writing. */
async function listManifestKeys(
  backend: StorageBackend,
  keys: ChainKeys,
  options: CallOptions,
): Promise<readonly StoredObject[]> {
  return backend.list(keys.checkpoints, options);
}

/** @throws REPO_DAMAGED, REPO_VERSION, STORAGE_NOT_FOUND */
export async function loadManifest(
  backend: StorageBackend,
  keys: ChainKeys,
  { key, sizeBytes }: StoredObject,
  options: CallOptions,
): Promise<Manifest> {
  if (idOfKey(key) === undefined || seqOfKey(key) === 0) throw damaged(key, 'not the name of a checkpoint');
  if (sizeBytes > MAX_SEALED_BYTES) throw damaged(key, `${sizeBytes} bytes are too long for a manifest`);
  return decodeManifest(key, keys.chain, await backend.load(key, undefined, options));
}

export async function loadManifests(
  backend: StorageBackend,
  keys: ChainKeys,
  options: CallOptions,
): Promise<CheckpointList> {
  const manifests: Manifest[] = [];
  const damagedObjects: DamagedObject[] = [];
  for (const object of await listManifestKeys(backend, keys, options)) {
    try {
      manifests.push(await loadManifest(backend, keys, object, options));
    } catch (error) {
      // The checkpoint was forgotten since it was listed.
      if (isCheckpointError(error, 'STORAGE_NOT_FOUND')) continue;
      damagedObjects.push(asDamagedObject(object.key, error));
    }
  }
  return { manifests, damaged: damagedObjects };
}
