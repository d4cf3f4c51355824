/**
 * Removes from a chain what no checkpoint needs. Newest packs first: whatever a pack that is still there is
 * based on is there too, at any moment, so that a crash leaves a chain that verifies.
 */

import { sharedKernels } from '../../kernels/shared-kernels.js';
import { isCheckpointError } from '../../errors.js';
import type { CallOptions, StoredObject } from '../../storage/backend.js';
import { unlessEnded } from '../../storage/interrupted.js';
import { ChainReader } from '../read/chain-reader.js';
import { asDamagedObject } from '../../records/damage.js';
import { withReserve } from '../reserve.js';
import { keepHighestNumber } from '../write/sequence-mark.js';
import type { SweepPlan, SweepSource } from './sweep-plan.js';
import { thinPack } from './thin-pack.js';

export interface SweepOptions extends CallOptions {
  /** @throws REPO_LOCKED when the lock of the chain is not held any more */
  readonly checkLock: () => Promise<void>;
  /** Ends the sweep early, between two objects or while one is written anew, which stays as it was then. */
  readonly until?: AbortSignal | undefined;
}

export interface SweepResult {
  readonly freedBytes: number;
  readonly removedObjects: number;
  readonly thinnedPacks: number;
  /** Damage that the plan had not met, and because of which less was removed. */
  readonly problems: readonly string[];
  /** A pack could not be written anew for lack of room: it stays as it is, and so do older ones. */
  readonly isShortOfRoom: boolean;
  /** It was ended early: more could go. */
  readonly isCutShort: boolean;
}

/** @throws REPO_LOCKED, and what the backend throws; what is done until then is done */
export async function sweep(
  source: SweepSource,
  plan: SweepPlan,
  { checkLock, signal, until }: SweepOptions,
): Promise<SweepResult> {
  const { backend, repositoryId, keys } = source;
  const call = { signal };
  let freedBytes = 0;
  let removedObjects = 0;
  let thinnedPacks = 0;
  let isShortOfRoom = false;
  const isEnded = (): boolean => until?.aborted === true && signal?.aborted !== true;
  const problems: string[] = [];
  const remove = async ({ key, sizeBytes }: StoredObject): Promise<void> => {
    await checkLock();
    try {
      await backend.remove(key, call);
    } catch (error) {
      // It was removed by a call whose answer was lost.
      if (!isCheckpointError(error, 'STORAGE_NOT_FOUND')) throw error;
    }
    freedBytes += sizeBytes;
    removedObjects++;
  };
  const gone = plan.packs.filter(({ thinTo }) => thinTo === undefined).map(({ object }) => object.key);
  if (gone.length > 0) {
    const present = await backend.list(keys.packs, call);
    const mark = () => keepHighestNumber(backend, present, new Set(gone), (seq) => keys.pack(seq), call);
    await withReserve(backend, keys, call, mark);
  }
  const reader = new ChainReader(backend, repositoryId, keys.chain, {
    givesBlank: true,
  });
  for (const { object, thinTo } of plan.packs) {
    if (isEnded()) break;
    if (thinTo === undefined) {
      await remove(object);
      continue;
    }
    await checkLock();
    try {
      const sizeBytes = await unlessEnded(until, call, (thinning) =>
        // Reading the pack takes a while, in which the lock may be lost.
        thinPack(source, thinTo, reader, sharedKernels(), { ...thinning, beforeVisible: checkLock }),
      );
      if (sizeBytes === undefined) break;
      freedBytes += object.sizeBytes - sizeBytes;
      thinnedPacks++;
    } catch (error) {
      isShortOfRoom = isCheckpointError(error, 'STORAGE_FULL');
      if (isShortOfRoom) break;
      problems.push(asDamagedObject(object.key, error).message);
      // The damaged pack stays as it is, and so does everything that it may be based on.
      break;
    }
  }
  if (isEnded())
    return { freedBytes, removedObjects, thinnedPacks, problems, isShortOfRoom, isCutShort: true };
  if (plan.segments.length > 0) {
    const present = await backend.list(keys.index, call);
    const leaving = new Set(plan.segments.map(({ key }) => key));
    const mark = () => keepHighestNumber(backend, present, leaving, (seq) => keys.segment(seq), call);
    await withReserve(backend, keys, call, mark);
  }
  for (const object of plan.segments) await remove(object);
  return { freedBytes, removedObjects, thinnedPacks, problems, isShortOfRoom, isCutShort: false };
}
