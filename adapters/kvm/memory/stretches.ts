/**
 * Page runs as stretches of memory of the QEMU process, moved in batches of as many as one system call takes.
 *
 *     runs (flat page indexes) -> stretches (address, length) -> batches -> move -> what is left of a batch -> move
 */

import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES, countRunPages, type PageRuns } from '../../../src/types.js';
import { MAX_IOVECS } from './process-memory.js';
import type { RamBlock } from './ram-blocks.js';

/** Plain data: workers get it. */
export interface MappedRegion {
  readonly id: string;
  readonly firstPage: number;
  readonly pageCount: number;
  /** Address in the process. */
  readonly host: number;
}

/** @param blocks one for each region, in their order */
export function mappedRegions(layout: MemoryLayout, blocks: readonly RamBlock[]): readonly MappedRegion[] {
  return layout.regions.map(({ id, firstPage, pageCount }, i) => ({
    ...{ id, firstPage, pageCount },
    host: blocks[i]!.host,
  }));
}

export interface Moving {
  readonly regions: readonly MappedRegion[];
  /** Room for a batch: 2 * MAX_IOVECS words. Used again and again. */
  readonly remote: BigUint64Array;
  /** @returns bytes moved; 0 when the first page of the batch cannot be */
  readonly move: (remote: BigUint64Array, remoteCount: number, bytes: Uint8Array) => number;
  /** What to throw then. */
  readonly stuck: (address: number, regions: readonly MappedRegion[]) => Error;
}

/**
 * Moves the pages of `runs`, which lie one after the other in `bytes`. Synchronous.
 * @throws what `move` and `stuck` say; RangeError when `bytes` is too short, or a page is in no region
 */
export function moveRuns(runs: PageRuns, bytes: Uint8Array, moving: Moving): void {
  const { regions, remote } = moving;
  if (countRunPages(runs) * PAGE_SIZE_BYTES > bytes.length)
    throw new RangeError(`${countRunPages(runs)} pages do not fit in ${bytes.length} bytes`);
  let vectorCount = 0;
  let at = 0;
  let batchBytes = 0;
  const flush = (): void => {
    moveBatch(vectorCount, bytes.subarray(at, at + batchBytes), moving);
    at += batchBytes;
    vectorCount = 0;
    batchBytes = 0;
  };
  eachStretch(runs, regions, (address, lengthBytes) => {
    remote[vectorCount * 2] = BigInt(address);
    remote[vectorCount * 2 + 1] = BigInt(lengthBytes);
    batchBytes += lengthBytes;
    if (++vectorCount === MAX_IOVECS) flush();
  });
  flush();
}

/** Where an address lies, for a message. */
export function placeOf(
  address: number,
  regions: readonly MappedRegion[],
): { readonly region: string; readonly offset: number } {
  const found = regions.find(
    ({ host, pageCount }) => address >= host && address < host + pageCount * PAGE_SIZE_BYTES,
  );
  return { region: found?.id ?? 'an unknown region', offset: found === undefined ? 0 : address - found.host };
}

/** Neighbours in the flat page space may lie in different regions. */
function eachStretch(
  runs: PageRuns,
  regions: readonly MappedRegion[],
  visit: (address: number, lengthBytes: number) => void,
): void {
  let region = regions[0];
  for (let i = 0; i < runs.length; i += 2) {
    const end = runs[i]! + runs[i + 1]!;
    for (let page = runs[i]!; page < end;) {
      const at = page;
      if (region === undefined || !holds(region, at)) region = regions.find((other) => holds(other, at));
      if (region === undefined) throw new RangeError(`page ${page} is in no memory region`);
      const stop = Math.min(end, region.firstPage + region.pageCount);
      visit(region.host + (page - region.firstPage) * PAGE_SIZE_BYTES, (stop - page) * PAGE_SIZE_BYTES);
      page = stop;
    }
  }
}

function holds(region: MappedRegion, page: number): boolean {
  return page >= region.firstPage && page < region.firstPage + region.pageCount;
}

/** Moves the batch whole: the kernel stops early at 2 GiB - 4096 a call, and at a page that cannot be moved. */
function moveBatch(vectorCount: number, bytes: Uint8Array, { regions, remote, move, stuck }: Moving): void {
  let next = 0;
  let done = 0;
  while (done < bytes.length) {
    const moved = move(remote.subarray(next * 2), vectorCount - next, bytes.subarray(done));
    if (moved === 0) throw stuck(Number(remote[next * 2]!), regions);
    done += moved;
    for (let left = BigInt(moved); left > 0n;) {
      const length = remote[next * 2 + 1]!;
      const used = left < length ? left : length;
      remote[next * 2]! += used;
      remote[next * 2 + 1]! -= used;
      left -= used;
      if (used === length) next++;
    }
  }
}
