/**
 * Room that a chain keeps in hand (docs/format.md, reserve). To free anything, `forget` needs a lock, and a
 * lock is an object: on a storage without one free block, or without one free inode, none could be made, and
 * the repository could never be freed. So each chain holds a few objects without meaning; when a small object
 * that freeing depends on finds no room, they go first, and they come back when there is room again.
 *
 *     full:   save lock -> no room;  remove reserve;  save lock -> done;  forget;  release lock;  make reserve
 *
 * Deleting without a lock instead would race with writers; a lock in memory would not be seen by other hosts.
 */

import { randomBytes } from 'node:crypto';

import { isCheckpointError } from '../errors.js';
import type { ChainKeys } from '../format/chain-keys.js';
import type { CallOptions, StorageBackend } from '../storage/backend.js';
import { ChainLock, type LockOptions } from './locks/chain-lock.js';

/** As many small objects as forgetting may need before it frees anything: a lock, and a mark of each kind. */
const RESERVE_OBJECTS = 3;
/** The largest block or cluster that is usual: an object takes up no less. */
const RESERVE_BYTES = 64 * 1024;

/**
 * Takes the lock of a chain, also on a full storage.
 * @throws see `ChainLock.take`
 */
export function takeLock(backend: StorageBackend, keys: ChainKeys, options: LockOptions): Promise<ChainLock> {
  return withReserve(backend, keys, options, () => ChainLock.take(backend, keys, options));
}

/**
 * Runs `work`, which saves a small object; when there is no room for it, once more without the reserve.
 * @throws what `work` throws
 */
export async function withReserve<T>(
  backend: StorageBackend,
  keys: ChainKeys,
  call: CallOptions,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!isCheckpointError(error, 'STORAGE_FULL')) throw error;
    if (!(await releaseReserve(backend, keys, call))) throw error;
    return work();
  }
}

/** @returns whether there was any */
async function releaseReserve(backend: StorageBackend, keys: ChainKeys, call: CallOptions): Promise<boolean> {
  let isAny = false;
  for (const { key } of await backend.list(keys.reserves, call)) {
    try {
      await backend.remove(key, call);
    } catch (error) {
      // Somebody else is at it, too.
      if (!isCheckpointError(error, 'STORAGE_NOT_FOUND')) throw error;
    }
    isAny = true;
  }
  return isAny;
}

/**
 * Makes what is missing of the reserve. Never throws: what fails is tried again by the next writer.
 * @returns `none` when there is no room for any of it
 */
export async function keepReserve(
  backend: StorageBackend,
  keys: ChainKeys,
  call: CallOptions,
): Promise<'all' | 'some' | 'none'> {
  let count = 0;
  try {
    const present = new Set((await backend.list(keys.reserves, call)).map(({ key }) => key));
    for (let number = 1; number <= RESERVE_OBJECTS; number++) {
      const key = keys.reserve(number);
      // Random, because a file system that compresses would keep no room for zeros.
      if (!present.has(key)) await backend.save(key, randomBytes(RESERVE_BYTES), call);
      count++;
    }
    return 'all';
  } catch (error) {
    return isCheckpointError(error, 'STORAGE_FULL') && count === 0 ? 'none' : 'some';
  }
}
