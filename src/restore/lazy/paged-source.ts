/** A checkpoint as a page server reads it. */

import type { PagedSource } from '../../hypervisor/page-serving.js';
import type { CheckpointReader } from '../../repository/read/checkpoint-reader.js';
import type { PageMap } from '../../repository/read/page-map.js';
import { packOfRef, ZERO_REF } from '../../format/record-ref.js';
import type { Manifest } from '../../format/manifest.js';

/** 16 MiB. Chosen, not measured: how many pages a guest touches in its first second decides. */
const HOT_PAGES = 4096;

/** @throws REPO_DAMAGED, CHECKPOINT_GONE, and what the storage throws */
export async function pagedSource(reader: CheckpointReader, manifest: Manifest): Promise<PagedSource> {
  const map = await reader.map();
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
    isStored: (page) => map.refOf(page) !== ZERO_REF,
    storedPages: map.countRecords(),
    hotPages: hotPages(map, manifest),
    readPages: (pages, into) => reader.readPages(pages, into),
  };
}

/**
 * Pages that the last increments wrote, newest pack first. A checkpoint of all memory says of no page that it was
 * written lately.
 */
export function hotPages(map: Pick<PageMap, 'refs'>, { kind }: Pick<Manifest, 'kind'>): Uint32Array {
  if (kind === 'base') return new Uint32Array(0);
  const oldest = oldestPackOf(map.refs);
  const pages: number[] = [];
  // The oldest pack is of the checkpoint of all memory that the chain begins with.
  for (const [page, ref] of map.refs.entries())
    if (ref !== ZERO_REF && packOfRef(ref) > oldest) pages.push(page);
  pages.sort((a, b) => map.refs[b]! - map.refs[a]!);
  return Uint32Array.from(pages.slice(0, HOT_PAGES));
}

function oldestPackOf(refs: Float64Array): number {
  let oldest = Infinity;
  for (const ref of refs) if (ref !== ZERO_REF && ref < oldest) oldest = ref;
  return packOfRef(oldest);
}
