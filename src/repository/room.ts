/**
 * What a chain makes of the room that is left in its storage, where that can be said.
 *
 * To free anything of a pack that is needed in part, the pack is written anew beside the old one. In little room
 * only small packs can be, so packs are the smaller the less room there is; and a policy has to be applied while
 * there is still room to work in.
 */

import { PACK_TARGET_BYTES } from '../format/pack-format.js';
import type { CallOptions, StorageBackend } from '../storage/backend.js';

/** A pack takes at most this share of the room that there is when its checkpoint begins. */
const PACK_SHARE = 1 / 32;
/** Some frames; with smaller ones the directories and headers begin to count. */
const LEAST_PACK_BYTES = 256 * 1024;
/** For the packs that are written anew one after the other, for index and manifest. */
const WORKING_BYTES = 1024 * 1024;
/** The next increment may be larger than the largest of the last ones. */
const LARGER = 2;
/** Increments that count as the last ones. */
export const LAST_INCREMENTS = 8;

/** Undefined where it cannot be said. Never throws. */
export async function freeBytesOf(
  backend: StorageBackend,
  options: CallOptions,
): Promise<number | undefined> {
  try {
    return await backend.freeBytes?.(options);
  } catch {
    // Whoever needs the room is told by the call that does not find it.
    return undefined;
  }
}

/** Size at which a pack is closed and another begun. */
export function packTargetIn(freeBytes: number | undefined): number {
  if (freeBytes === undefined) return PACK_TARGET_BYTES;
  return Math.min(PACK_TARGET_BYTES, Math.max(LEAST_PACK_BYTES, Math.floor(freeBytes * PACK_SHARE)));
}

/**
 * Bytes that are missing for the next increment, and for making room after it; 0 when there is enough.
 * @param stored bytes that each of the last increments added; without any, nothing is known
 */
export function missingBytes(freeBytes: number | undefined, stored: readonly number[]): number {
  if (freeBytes === undefined || stored.length === 0) return 0;
  return Math.max(0, LARGER * Math.max(...stored) + WORKING_BYTES - freeBytes);
}
