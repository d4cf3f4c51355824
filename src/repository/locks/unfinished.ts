/** What writers of a chain have left unfinished, cleared away by whoever owns its lock. */

import type { ChainKeys } from '../../format/chain-keys.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';

/**
 * Nobody but the owner of the lock may write to these prefixes, so what is unfinished there was left, or is
 * being written by somebody who has lost the lock and must not commit any more. Where locks and the
 * reserve lie, others are right to write.
 */
export async function removeUnfinished(
  backend: StorageBackend,
  keys: ChainKeys,
  options: CallOptions,
): Promise<void> {
  for (const prefix of [keys.checkpoints, keys.index, keys.packs, keys.prefix])
    await backend.removeUnfinished?.(prefix, options);
}
