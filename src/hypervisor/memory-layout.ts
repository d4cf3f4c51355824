/**
 * The memory of a VM as the core sees it: named regions laid end to end in one flat space of page indexes.
 *
 *     page index   0 ........ 262143 | 262144 ...... 266239 | 266240 ...
 *     region       pc.ram            | vga.vram             | pc.bios (64 pages, then a gap
 *                                                             to the next multiple of 64)
 *
 * Every region starts at a multiple of 64 pages, so that each has whole 64-bit words of a dirty bitmap to
 * itself. The pages of a gap do not exist: their bits are never set. A region is one RAM block of QEMU, or
 * the guest's physical memory on Xen; its id is what the hypervisor calls it and is what links it from
 * checkpoint to checkpoint.
 */

import { PAGE_SIZE_BYTES } from '../types.js';

/**
 * A page index is below 2^32 (`types.ts`), and a bitmap of all pages has whole words below that: 16 TiB, less 256 KiB.
 */
export const MAX_PAGE_SPAN = 2 ** 32 - 64;

export interface MemoryRegion {
  readonly id: string;
  /** Used length; a multiple of the page size. */
  readonly sizeBytes: number;
  /** Flat index of the region's first page; a multiple of 64. */
  readonly firstPage: number;
  readonly pageCount: number;
}

export interface MemoryLayout {
  readonly regions: readonly MemoryRegion[];
  /** Length of the flat space, gaps included; a multiple of 64. */
  readonly pageSpan: number;
  /** Sum of the regions' sizes. */
  readonly sizeBytes: number;
}

/**
 * Lays regions end to end in the order given.
 * @throws RangeError when a size is not a positive multiple of a page.
 */
export function layOut(
  regions: readonly { readonly id: string; readonly sizeBytes: number }[],
): MemoryLayout {
  let firstPage = 0;
  let sizeBytes = 0;
  const placed = regions.map((region) => {
    if (region.sizeBytes <= 0 || region.sizeBytes % PAGE_SIZE_BYTES !== 0) {
      throw new RangeError(
        `memory region ${region.id}: ${region.sizeBytes} bytes is not a whole number of pages`,
      );
    }
    const pageCount = region.sizeBytes / PAGE_SIZE_BYTES;
    const here: MemoryRegion = { id: region.id, sizeBytes: region.sizeBytes, firstPage, pageCount };
    firstPage += Math.ceil(pageCount / 64) * 64;
    sizeBytes += region.sizeBytes;
    return here;
  });
  return { regions: placed, pageSpan: firstPage, sizeBytes };
}

/** Same regions, same sizes, same places. */
export function sameLayout(a: MemoryLayout, b: MemoryLayout): boolean {
  return (
    a.regions.length === b.regions.length &&
    a.regions.every(
      (region, i) => region.id === b.regions[i]!.id && region.sizeBytes === b.regions[i]!.sizeBytes,
    )
  );
}

/** The region that holds `page`, or undefined for a gap or an index past the end. */
export function regionOfPage(layout: MemoryLayout, page: number): MemoryRegion | undefined {
  return layout.regions.find(
    (region) => page >= region.firstPage && page < region.firstPage + region.pageCount,
  );
}
