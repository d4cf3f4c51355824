/** A checkpoint as a page server reads it. */

import type { PagedSource } from '../../hypervisor/page-serving.js';
import type { CheckpointReader } from '../../repository/read/checkpoint-reader.js';
import { DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import { makeRef, packOfRef, ZERO_REF } from '../../format/record-ref.js';
import type { Manifest } from '../../format/manifest.js';
import { NewestPages } from './newest-pages.js';

/** 16 MiB. Chosen, not measured: how many pages a guest touches in its first second decides. */
const HOT_PAGES = 4096;

/** @throws REPO_DAMAGED, CHECKPOINT_GONE, and what the storage throws */
export async function pagedSource(reader: CheckpointReader, manifest: Manifest): Promise<PagedSource> {
  const stored = new DirtyBitmap(reader.layout.pageSpan);
  const { storedPages, hotPages } = await lookThrough(reader.allRefs(), manifest, (page) => stored.set(page));
  return {
    checkpointId: reader.checkpointId,
    hypervisor: reader.hypervisor,
    machine: reader.machine,
    machineType: reader.machineType,
    layout: reader.layout,
    disks: reader.disks,
    frozen: reader.frozen,
    deviceState: () => reader.deviceState(),
    pages: (signal) => reader.pages(signal),
    pagesAsStored: (signal) => reader.pagesAsStored(signal),
    isStored: (page) => stored.has(page),
    storedPages,
    hotPages,
    readPages: (pages, into) => reader.readPages(pages, into),
  };
}

export interface StoredPages {
  /** Pages that are not zero. */
  readonly storedPages: number;
  /**
   * Pages that the last increments wrote, newest pack first. A checkpoint of all memory says of no page that
   * it was written lately.
   */
  readonly hotPages: Uint32Array;
}

/**
 * @param windows each page once
 * @param onStored called for each page that is not zero
 */
export async function lookThrough(
  windows: AsyncIterable<{ readonly firstPage: number; readonly refs: Float64Array }>,
  { kind }: Pick<Manifest, 'kind'>,
  onStored: (page: number) => void,
): Promise<StoredPages> {
  const newest = new NewestPages(HOT_PAGES);
  let storedPages = 0;
  let oldest = Infinity;
  for await (const { firstPage, refs } of windows) {
    for (let i = 0; i < refs.length; i++) {
      const ref = refs[i]!;
      if (ref === ZERO_REF) continue;
      storedPages++;
      onStored(firstPage + i);
      if (ref < oldest) oldest = ref;
      if (kind === 'incremental') newest.add(firstPage + i, ref);
    }
  }
  // The oldest pack is of the checkpoint of all memory that the chain begins with.
  const hotPages =
    oldest === Infinity ? newest.take(0) : newest.take(makeRef(packOfRef(oldest) + 1, 0, 0) - 1);
  return { storedPages, hotPages };
}
