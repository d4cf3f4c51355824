/** Removing the locks of a chain because an operator says so. */

import { CheckpointError, isCheckpointError } from '../../errors.js';
import type { ChainKeys } from '../../format/chain-keys.js';
import { fateOf } from '../../host/process-owner.js';
import type { StorageBackend } from '../../storage/backend.js';
import { waitText, type LockOptions } from './chain-lock.js';
import { observe } from './heartbeat.js';
import { removeLock } from './lock-objects.js';
import { describeOwner, lockKeys, readLock } from './lock-record.js';

export interface UnlockOptions extends LockOptions {
  /** Removes the locks of living owners, too, and those that cannot be judged. */
  readonly force?: boolean | undefined;
}

/**
 * Removes the locks of owners that are gone: whose process has ended, or, where it cannot be seen from here,
 * that give no sign of life while they are watched.
 * @returns keys of the locks that were removed
 * @throws REPO_LOCKED naming the owners of those that stay, after the others are removed
 */
export async function unlockChain(
  backend: StorageBackend,
  keys: ChainKeys,
  options: UnlockOptions,
): Promise<readonly string[]> {
  const removed: string[] = [];
  const living: string[] = [];
  for (const key of await lockKeys(backend, keys, options)) {
    const why = options.force === true ? '' : await whyItStays(backend, keys, key, options);
    if (why !== '') {
      living.push(why);
      continue;
    }
    await removeLock(backend, keys, key, options);
    removed.push(key);
  }
  // What was being written when a lock was to be created: it would otherwise stay for as long as the chain.
  if (options.force === true) await backend.removeUnfinished?.(keys.locks, options);
  if (living.length === 0) return removed;
  throw new CheckpointError('REPO_LOCKED', `chain ${keys.chain} stays locked: ${living.join('; ')}`, {
    hint: 'stop that process; "cairn unlock --force" takes the lock from it, and what it has not committed fails',
    detail: { chain: keys.chain, removed: [...removed] },
  });
}

/** @returns empty when the lock may go */
async function whyItStays(
  backend: StorageBackend,
  keys: ChainKeys,
  key: string,
  options: UnlockOptions,
): Promise<string> {
  try {
    const owner = await readLock(backend, key, options);
    if (owner === undefined) return '';
    const fate = fateOf(owner);
    if (fate === 'gone') return '';
    if (fate === 'alive') return `${describeOwner(owner)}, is running`;
    if (owner.beatMs === 0) return `${describeOwner(owner)}, may be running`;
    options.onWait?.(waitText(keys.chain, owner));
    const found = await observe(backend, keys, owner, options);
    return found === 'alive' ? `${describeOwner(owner)}, is running` : '';
  } catch (error) {
    if (isCheckpointError(error, 'REPO_DAMAGED')) return error.message;
    throw error;
  }
}
