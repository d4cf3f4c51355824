/** The share pool of a session, sized for this machine. */

import { availableParallelism } from 'node:os';

import { SharePool } from '../../pool/share-pool.js';

export interface PoolSizing {
  readonly workers?: number | undefined;
  readonly cacheBytes?: number | undefined;
  readonly compressionLevel?: number | undefined;
}

/** Budget for previous versions when none is given. */
export const DEFAULT_CACHE_BYTES = 256 << 20;
/** Deltas are small: a higher zstd level costs little time and saves a few percent. */
export const DEFAULT_COMPRESSION_LEVEL = 3;
/** More owners than this only fight over memory bandwidth during the copy. */
const MOST_WORKERS = 4;

/** Begun, not waited for; `SharePool.open` says where pages are read from. */
export function startPool(sizing: PoolSizing): SharePool {
  return new SharePool({
    workers: sizing.workers ?? Math.min(MOST_WORKERS, availableParallelism()),
    cacheBytes: sizing.cacheBytes ?? DEFAULT_CACHE_BYTES,
    level: sizing.compressionLevel ?? DEFAULT_COMPRESSION_LEVEL,
  });
}
