/** What a set of pages takes up when stored: as deltas the way a checkpoint stores them, or whole. */

import type { PageCodec } from '../kernels/page-codec.js';
import { compress } from '../ffi/zstd.js';
import { PAGE_SIZE_BYTES } from '../types.js';

/** Pages that are compressed together, as in a frame of a checkpoint. */
const GROUP_PAGES = 256;

/** Page contents before and after: 4096 bytes a page, equally many. */
export interface Versions {
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

/**
 * Deltas, compressed in groups.
 * @param level of zstd, 0 = off.
 * @returns bytes, without what a frame adds to name its pages
 */
export function deltaBytes({ before, after }: Versions, level: number, codec: PageCodec): number {
  const pageCount = after.length / PAGE_SIZE_BYTES;
  let stored = 0;
  for (let from = 0; from < pageCount; from += GROUP_PAGES) {
    const control: Uint8Array[] = [];
    const data: Uint8Array[] = [];
    for (let page = from; page < Math.min(pageCount, from + GROUP_PAGES); page++) {
      const at = page * PAGE_SIZE_BYTES;
      const record = codec.encode(
        after.subarray(at, at + PAGE_SIZE_BYTES),
        before.subarray(at, at + PAGE_SIZE_BYTES),
      );
      control.push(record.control);
      data.push(record.data);
    }
    stored += compressedBytes(Buffer.concat([...control, ...data]), level);
  }
  return stored;
}

/** The new pages as they are, compressed in groups. */
export function wholeBytes({ after }: Versions, level: number): number {
  let stored = 0;
  for (let at = 0; at < after.length; at += GROUP_PAGES * PAGE_SIZE_BYTES)
    stored += compressedBytes(after.subarray(at, at + GROUP_PAGES * PAGE_SIZE_BYTES), level);
  return stored;
}

function compressedBytes(bytes: Uint8Array, level: number): number {
  return level === 0 || bytes.length === 0 ? bytes.length : compress(bytes, level).length;
}
