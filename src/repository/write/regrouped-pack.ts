/**
 * Regrouped records in a pack of their own. The map says where they lie only once the pack is durable, and
 * can be told to forget them again: a checkpoint is as good without.
 */

import type { CallOptions } from '../../storage/backend.js';
import type { ChainReader } from '../read/chain-reader.js';
import type { PackEntry } from '../../format/manifest.js';
import type { PackWriter } from './pack-writer.js';
import type { PageMap } from '../read/page-map.js';
import { makeRef, type RecordRef } from '../../format/record-ref.js';
import { regroup } from './regroup.js';
import { WHOLE_REGROUP_RISE } from './regroup-policy.js';

export interface RegroupedPackRequest {
  /** See `pagesToRegroup`. */
  readonly pages: Uint32Array;
  readonly map: PageMap;
  /** The levels that the segment rises decide which pages are worth it. */
  readonly rise: number;
  /** See `budgetOf`. */
  readonly budgetBytes: number;
  /** zstd level, 0 = off. */
  readonly level: number;
  readonly reader: ChainReader;
  /** An empty pack, which is finished here, or aborted when there is nothing to be written. */
  readonly pack: PackWriter;
}

/** Regrouped records that are durable, and what the map said of their pages before. */
export interface RegroupedPack {
  readonly entry: PackEntry;
  readonly pages: readonly number[];
  readonly refs: readonly RecordRef[];
  readonly depths: readonly number[];
}

/**
 * @returns undefined when no page was worth it; then nothing was written
 * @throws what `regroup` and the backend throw; then the pack is aborted and the map unchanged
 */
export async function writeRegroupedPack(
  { pages, map, rise, budgetBytes, level, reader, pack }: RegroupedPackRequest,
  options: CallOptions,
): Promise<RegroupedPack | undefined> {
  try {
    const moved = await regroup(
      {
        ...{ pages, map, budgetBytes, level, reader },
        dense: rise >= WHOLE_REGROUP_RISE,
        append: async (frame) => {
          const number = pack.append(frame.bytes, frame.kind, frame.pages.length);
          await pack.drained();
          return Array.from(frame.pages, (_, i) => makeRef(pack.seq, number, i));
        },
      },
      options,
    );
    if (moved.pages.length === 0) {
      await pack.abort();
      return undefined;
    }
    const entry = await pack.finish();
    const before = moved.pages.map((page) => map.get(page));
    moved.pages.forEach((page, i) => map.set(page, moved.refs[i]!, moved.depths[i]!));
    return {
      entry,
      pages: moved.pages,
      refs: before.map(({ ref }) => ref),
      depths: before.map(({ depth }) => depth),
    };
  } catch (error) {
    await pack.abort();
    throw error;
  }
}

/** The map says again where the records lay before. The caller removes the pack. */
export function forgetRegrouped(map: PageMap, { pages, refs, depths }: RegroupedPack): void {
  pages.forEach((page, i) => map.set(page, refs[i]!, depths[i]!));
}
