/**
 * Regrouping before its checkpoint: between two checkpoints the records are brought together that the segment of the
 * next one takes over, so that no checkpoint waits for it. They lie in a pack without a name until that checkpoint
 * commits, which takes over those of its unchanged pages; given up, nothing of it stays.
 *
 *     checkpoint 7          | between: read, encode, append     | checkpoint 8
 *     packs, index, manifest|  until 8 is due                   | packs, the pack gets its name, index, manifest
 */

import { performance } from 'node:perf_hooks';

import type { MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { CallOptions } from '../../storage/backend.js';
import { DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import type { Manifest } from '../../format/manifest.js';
import type { ChainReader } from '../read/chain-reader.js';
import type { SegmentSource } from '../read/segment-reader.js';
import type { PageMap } from '../read/page-map.js';
import type { PackWriter } from './pack-writer.js';
import type { Regrouped } from './regroup.js';
import { budgetOf, pagesToRegroup } from './regroup-policy.js';
import { enterRegrouped, fillRegroupedPack, type RegroupedPack } from './regrouped-pack.js';
import { planNextSegment } from './segment-plan.js';

export interface RegroupAheadRequest {
  /** The newest checkpoint of the chain, which the next one is held against. */
  readonly parent: Manifest;
  /** Its committed map, in `layout`. Not changed. */
  readonly map: PageMap;
  readonly layout: MemoryLayout;
  readonly reader: ChainReader;
  /** zstd level, 0 = off. */
  readonly level: number;
  /** Ends the work early: what is done by then counts. */
  readonly until: AbortSignal;
}

export interface RegroupAheadDeps {
  readonly source: SegmentSource;
  /** Begins a pack of the next number. */
  readonly newPack: () => PackWriter;
  /** Bytes that each of the newest increments added to the chain, at most so many. */
  readonly storedLately: (count: number) => readonly number[];
}

export class RegroupAhead {
  readonly #pack: PackWriter;
  readonly #moved: Regrouped;

  private constructor(
    /** The checkpoint whose map says where the pages lie. */
    readonly parentId: string,
    readonly layout: MemoryLayout,
    readonly ms: number,
    pack: PackWriter,
    moved: Regrouped,
  ) {
    this.#pack = pack;
    this.#moved = moved;
  }

  /**
   * @returns undefined when the next checkpoint regroups nothing, or there was no time for a part of it
   * @throws REPO_DAMAGED when an old record cannot be read, and what the backend throws; nothing stays then
   */
  static async make(
    request: RegroupAheadRequest,
    { source, newPack, storedLately }: RegroupAheadDeps,
    options: CallOptions,
  ): Promise<RegroupAhead | undefined> {
    const { parent, map, layout, reader, level, until } = request;
    const started = performance.now();
    const plan = await planNextSegment(map, parent, layout, source, options);
    const pages = pagesToRegroup(map, plan);
    if (pages.length === 0 || until.aborted) return undefined;
    const { rise } = plan;
    const pack = newPack();
    let isKept = false;
    try {
      const budgetBytes = budgetOf(plan, storedLately);
      const moved = await fillRegroupedPack(
        { pages, map, rise, budgetBytes, level, reader, pack, until },
        options,
      );
      isKept = moved.pages.length > 0;
      if (!isKept) return undefined;
      return new RegroupAhead(parent.id, layout, performance.now() - started, pack, moved);
    } finally {
      if (!isKept) await pack.abort();
    }
  }

  get pageCount(): number {
    return this.#moved.pages.length;
  }

  get pack(): PackWriter {
    return this.#pack;
  }

  /**
   * Takes over the pages that are as they were, into a checkpoint whose segment holds `planned`.
   * @param map of that checkpoint, with its changes
   * @returns undefined when none is left; the pack is given up then
   * @throws what the backend throws
   */
  async place(map: PageMap, planned: Uint32Array): Promise<RegroupedPack | undefined> {
    const inSegment = new DirtyBitmap(map.pageSpan);
    for (const page of planned) inSegment.set(page);
    const { pages, refs, depths } = this.#moved;
    const left = [...pages.keys()].filter((i) => inSegment.has(pages[i]!) && !map.isChanged(pages[i]!));
    if (left.length === 0) {
      await this.#pack.abort();
      return undefined;
    }
    const entry = await this.#pack.finish();
    const moved = {
      pages: left.map((i) => pages[i]!),
      refs: left.map((i) => refs[i]!),
      depths: left.map((i) => depths[i]!),
    };
    return enterRegrouped(map, moved, entry);
  }

  /** Nothing of it stays, unless a checkpoint has taken it over. Never throws. */
  drop(): Promise<void> {
    return this.#pack.abort();
  }
}
