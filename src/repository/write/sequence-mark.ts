/**
 * Numbers of packs and segments are never used twice, not even when the objects with the highest ones are
 * removed (docs/format.md, forgetting). Before that, a small object, the mark, takes the next number. No
 * manifest leads to it; whoever lists the prefix finds its number taken.
 */

import type { CallOptions, StorageBackend, StoredObject } from '../../storage/backend.js';
import { seqOfKey } from '../../format/chain-keys.js';
import { FORMAT_NAME, FORMAT_VERSION } from '../../format/format-version.js';
import { openSealedJson, sealJson } from '../../format/sealed-json.js';
import { isCheckpointError } from '../../errors.js';

/** A mark has about 160 bytes; a longer object is none, and need not be read to tell. */
const MAX_MARK_BYTES = 256;
const MARK_FIELD = 'highestUsed';

/** Whether the object is a mark. */
export async function isMark(
  backend: StorageBackend,
  { key, sizeBytes }: StoredObject,
  options: CallOptions,
): Promise<boolean> {
  if (sizeBytes > MAX_MARK_BYTES) return false;
  try {
    return MARK_FIELD in openSealedJson(key, await backend.load(key, undefined, options));
  } catch (error) {
    if (isCheckpointError(error, 'REPO_DAMAGED') || isCheckpointError(error, 'STORAGE_NOT_FOUND'))
      return false;
    throw error;
  }
}

/**
 * Makes sure that the highest number stays taken when `leaving` are removed.
 * @param present all objects of the prefix, ascending
 * @param keyOf key of a number
 */
export async function keepHighestNumber(
  backend: StorageBackend,
  present: readonly StoredObject[],
  leaving: ReadonlySet<string>,
  keyOf: (seq: number) => string,
  options: CallOptions,
): Promise<void> {
  // Objects of other names may lie beside them, and are none of ours.
  const highest = present.findLast(({ key }) => key === keyOf(seqOfKey(key)));
  if (highest === undefined || !leaving.has(highest.key)) return;
  const seq = seqOfKey(highest.key);
  const head = { format: FORMAT_NAME, version: FORMAT_VERSION, requires: [] };
  try {
    await backend.save(keyOf(seq + 1), sealJson({ ...head, [MARK_FIELD]: seq }), options);
  } catch (error) {
    // The mark exists when an earlier call lost its answer.
    if (!isCheckpointError(error, 'STORAGE_EXISTS')) throw error;
  }
}
