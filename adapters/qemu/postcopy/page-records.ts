/**
 * Page records of the one section in which a postcopy source sends pages, in any order.
 *
 *     u64 offset in block | flags, [u8 length, block unless it is that of the record before], 4096 bytes or 00
 */

import type { MemoryRegion } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import { blockName, footer, RAM_SECTION_ID, u64, writeU64 } from '../stream/encode.js';
import { RAM_FLAG, SECTION } from '../stream/format.js';

const ZERO_PAGE = Buffer.alloc(PAGE_SIZE_BYTES);

export class PageRecords {
  #last: MemoryRegion | undefined;

  /**
   * One page. A page of zeros, given or not, becomes a short record.
   * @param bytes 4096 of them, which are copied; null for zeros
   */
  encode(region: MemoryRegion, page: number, bytes: Uint8Array | null): Buffer {
    const isZero = bytes === null || ZERO_PAGE.equals(bytes);
    const name = this.#last === region ? undefined : blockName(region);
    this.#last = region;
    const kind = isZero ? RAM_FLAG.ZERO : RAM_FLAG.PAGE;
    const word = (page - region.firstPage) * PAGE_SIZE_BYTES + kind;
    const length = 8 + (name?.length ?? 0) + (isZero ? 1 : PAGE_SIZE_BYTES);
    const record = Buffer.allocUnsafe(length);
    let at = writeU64(record, word + (name === undefined ? RAM_FLAG.CONTINUE : 0), 0);
    if (name !== undefined) at += name.copy(record, at);
    if (isZero) record[at] = 0;
    else record.set(bytes, at);
    return record;
  }

  /** The end of the section and of the stream. What was not sent by then is zero from here on. */
  end(): Buffer {
    return Buffer.concat([u64(RAM_FLAG.EOS), footer(RAM_SECTION_ID), Buffer.of(SECTION.EOF)]);
  }
}
