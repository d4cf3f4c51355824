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
import { regroup, type Regrouped } from './regroup.js';
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
  /** An empty pack; the caller finishes it, or aborts it when nothing was written or this fails. */
  readonly pack: PackWriter;
  /** See `RegroupRequest`. */
  readonly until?: AbortSignal | undefined;
}

/** Regrouped records that are durable, and what the map said of their pages before. */
export interface RegroupedPack {
  readonly entry: PackEntry;
  readonly pages: readonly number[];
  readonly refs: readonly RecordRef[];
  readonly depths: readonly number[];
}

/**
 * Appends the records to the pack, which stays unfinished. The map is not changed.
 * @returns where the pages lie once the pack is finished
 * @throws what `regroup` and the backend throw
 */
export function fillRegroupedPack(
  { rise, pack, ...request }: RegroupedPackRequest,
  options: CallOptions,
): Promise<Regrouped> {
  return regroup(
    {
      ...request,
      dense: rise >= WHOLE_REGROUP_RISE,
      append: async (frame) => {
        const number = pack.append(frame.bytes, frame.kind, frame.pages.length);
        await pack.drained();
        return Array.from(frame.pages, (_, i) => makeRef(pack.seq, number, i));
      },
    },
    options,
  );
}

/** The map says from now on that the pages lie in the pack, which is durable. */
export function enterRegrouped(map: PageMap, moved: Regrouped, entry: PackEntry): RegroupedPack {
  const before = moved.pages.map((page) => map.get(page));
  moved.pages.forEach((page, i) => map.set(page, moved.refs[i]!, moved.depths[i]!));
  return {
    entry,
    pages: moved.pages,
    refs: before.map(({ ref }) => ref),
    depths: before.map(({ depth }) => depth),
  };
}

/** The map says again where the records lay before. The caller removes the pack. */
export function forgetRegrouped(map: PageMap, { pages, refs, depths }: RegroupedPack): void {
  pages.forEach((page, i) => map.set(page, refs[i]!, depths[i]!));
}
