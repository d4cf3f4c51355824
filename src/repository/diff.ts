/** How two checkpoints differ: pages whose content is not the same, and the bytes in them that changed. */

import type { MemoryRegion } from '../hypervisor/memory-layout.js';
import type { CallOptions } from '../storage/backend.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import { WINDOW_PAGES, type CheckpointReader } from './read/checkpoint-reader.js';
import type { Manifest } from '../format/manifest.js';
import { INDEX_WINDOW_PAGES } from './read/page-index.js';
import type { Repository } from './repository.js';

export interface RegionDiff {
  readonly id: string;
  readonly pages: number;
  readonly changedBytes: number;
}

export interface CheckpointDiff {
  readonly pages: number;
  readonly changedBytes: number;
  /** Every region of either checkpoint. */
  readonly regions: readonly RegionDiff[];
}

interface Side {
  readonly reader: CheckpointReader;
  readonly region: MemoryRegion | undefined;
}

/**
 * Compares page by page, and regions by their id; a region that only one checkpoint has counts as zero in the
 * other. Only pages whose record differs are read.
 * @throws REPO_DAMAGED, INTERRUPTED, and what the backend throws
 */
export async function diffCheckpoints(
  repository: Repository,
  a: Manifest,
  b: Manifest,
  options: CallOptions = {},
): Promise<CheckpointDiff> {
  const readers = [repository.reader(a), repository.reader(b)] as const;
  // A reference means the same record only within one chain.
  const sameChain = a.chain === b.chain;
  const ids = new Set([...a.layout.regions, ...b.layout.regions].map(({ id }) => id));
  const regions: RegionDiff[] = [];
  for (const id of ids) {
    const side = (which: 0 | 1, manifest: Manifest): Side => ({
      reader: readers[which],
      region: manifest.layout.regions.find((region) => region.id === id),
    });
    regions.push({ id, ...(await diffRegion(side(0, a), side(1, b), sameChain, options)) });
  }
  return {
    pages: regions.reduce((sum, region) => sum + region.pages, 0),
    changedBytes: regions.reduce((sum, region) => sum + region.changedBytes, 0),
    regions,
  };
}

async function diffRegion(
  a: Side,
  b: Side,
  sameChain: boolean,
  options: CallOptions,
): Promise<{ readonly pages: number; readonly changedBytes: number }> {
  const pageCount = Math.max(a.region?.pageCount ?? 0, b.region?.pageCount ?? 0);
  let pages = 0;
  let changedBytes = 0;
  let refsOfA: number[] = [];
  let refsOfB: number[] = [];
  const flush = async (): Promise<void> => {
    const oldPages = await read(a.reader, refsOfA, options);
    const newPages = await read(b.reader, refsOfB, options);
    for (let from = 0; from < oldPages.length; from += PAGE_SIZE_BYTES) {
      const changed = countChanged(oldPages, newPages, from);
      if (changed > 0) pages++;
      changedBytes += changed;
    }
    refsOfA = [];
    refsOfB = [];
  };
  for (let first = 0; first < pageCount; first += INDEX_WINDOW_PAGES) {
    const end = Math.min(pageCount, first + INDEX_WINDOW_PAGES);
    const [windowA, windowB] = [await refsIn(a, first, end, options), await refsIn(b, first, end, options)];
    for (let i = 0; i < end - first; i++) {
      const [refA, refB] = [windowA[i] ?? 0, windowB[i] ?? 0];
      if (refA === refB && (sameChain || refA === 0)) continue;
      refsOfA.push(refA);
      refsOfB.push(refB);
      if (refsOfA.length === WINDOW_PAGES) await flush();
    }
  }
  await flush();
  return { pages, changedBytes };
}

/** References of pages [first, end) of the region; fewer where it ends before. */
async function refsIn(
  { reader, region }: Side,
  first: number,
  end: number,
  options: CallOptions,
): Promise<Float64Array> {
  if (region === undefined || first >= region.pageCount) return new Float64Array(0);
  const { firstPage, pageCount } = region;
  return reader.refsIn(firstPage + first, firstPage + Math.min(end, pageCount), options);
}

async function read(
  reader: CheckpointReader,
  refs: readonly number[],
  options: CallOptions,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(refs.length * PAGE_SIZE_BYTES);
  await reader.readPagesByRef(Float64Array.from(refs), bytes, options);
  return bytes;
}

/** Bytes that differ in the page at `from`. */
function countChanged(a: Uint8Array, b: Uint8Array, from: number): number {
  let changed = 0;
  for (let i = from; i < from + PAGE_SIZE_BYTES; i++) if (a[i] !== b[i]) changed++;
  return changed;
}
