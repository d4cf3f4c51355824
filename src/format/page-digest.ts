/**
 * The digest of a frame (docs/format.md, frame digest): proves that its records were decoded to the pages
 * they were made from.
 *
 *     page 0 -> hash64 --+
 *     page 1 -> hash64 --+--> hashes, 8 bytes each, little-endian -> hash64 = digest
 *     ...                |
 *     page n -> hash64 --+
 */

import type { Kernels } from '../kernels/kernels.js';
import { PAGE_SIZE_BYTES } from '../types.js';

// Scratch in the kernels' memory: one page, and room for the hashes of a frame's records.
const PAGE_AT = 64;
const HASHES_AT = PAGE_AT + PAGE_SIZE_BYTES;

/** The digest of a frame that decodes to these pages, which lie one after the other. */
export function digestOf(kernels: Kernels, pages: Uint8Array): bigint {
  return digestOfPages(
    kernels,
    Array.from({ length: pages.length / PAGE_SIZE_BYTES }, (_, i) =>
      pages.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES),
    ),
  );
}

/** Does what `digestOf` does, for pages that need not lie together. */
export function digestOfPages(kernels: Kernels, pages: readonly Uint8Array[]): bigint {
  return digestOfHashes(
    kernels,
    BigUint64Array.from(pages, (page) => hashOf(kernels, page)),
  );
}

/** The hash of one page, as it goes into the digest of its frame. */
export function hashOf(kernels: Kernels, page: Uint8Array): bigint {
  kernels.ensure(HASHES_AT);
  kernels.bytes().set(page, PAGE_AT);
  return kernels.hash64(PAGE_AT, PAGE_SIZE_BYTES, 0n);
}

/** The digest of a frame whose pages have these hashes, in the order of its records. */
export function digestOfHashes(kernels: Kernels, hashes: BigUint64Array): bigint {
  kernels.ensure(HASHES_AT + hashes.length * 8);
  const memory = kernels.bytes();
  const stored = new DataView(memory.buffer, memory.byteOffset + HASHES_AT, hashes.length * 8);
  hashes.forEach((hash, i) => stored.setBigUint64(i * 8, hash, true));
  return kernels.hash64(HASHES_AT, hashes.length * 8, 0n);
}
