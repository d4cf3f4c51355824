/**
 * Guest memory as a sparse file, page by page at its place: what an import unpacks into before a checkpoint
 * is made of it. The file is the caller's to remove.
 *
 * The layout is what the input claims. File and bitmaps grow with the pages that come (`sparse-memory.ts`).
 */

import { closeSync, openSync, readSync, writeSync } from 'node:fs';

import type { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import { GrowingBitmap } from '../bitmap/growing-bitmap.js';
import type { GuestReader, GuestReaderDescription } from '../hypervisor/guest-reader.js';
import { CheckpointError, systemErrorCode } from '../errors.js';
import { MAX_PAGE_SPAN, type MemoryLayout } from '../hypervisor/memory-layout.js';
import { hollow, isJustified, refuseHollow } from '../hypervisor/sparse-memory.js';
import { PAGE_SIZE_BYTES, type Json, type PageRuns } from '../types.js';

const ZERO_PAGE = new Uint8Array(PAGE_SIZE_BYTES);

export class MemoryFile {
  readonly layout: MemoryLayout;
  readonly path: string;
  readonly #present = new GrowingBitmap();
  readonly #written = new GrowingBitmap();
  readonly #fd: number;

  /** Creates `path`. @throws STREAM_MALFORMED for more memory than there are page indexes */
  constructor(layout: MemoryLayout, path: string) {
    if (layout.pageSpan > MAX_PAGE_SPAN)
      throw new CheckpointError(
        'STREAM_MALFORMED',
        'the input speaks of more memory than a checkpoint can hold (16 TiB)',
      );
    this.layout = layout;
    this.path = path;
    this.#fd = openSync(path, 'wx', 0o600);
  }

  /**
   * Pages that were put with contents, zeros among them. Caller owns it. As long as the layout, so that whoever has
   * not seen the pages come asks `checkFilled` first.
   */
  get present(): DirtyBitmap {
    return this.#present.over(this.layout.pageSpan);
  }

  /** @throws STREAM_MALFORMED when next to nothing of the memory has come */
  checkFilled(): void {
    refuseHollow(this.layout.pageSpan, this.#present.count);
  }

  /**
   * The last one of a page counts. `bytes` is one page.
   * @throws STREAM_MALFORMED for a page far behind all that have come, STORAGE_FULL
   */
  put(page: number, bytes: Uint8Array): void {
    if (!isJustified(page, this.#present.count)) throw hollow(page, this.#present.count);
    this.#present.set(page);
    // A page of zeros costs nothing as long as nothing else was there.
    const isZero = Buffer.compare(bytes, ZERO_PAGE) === 0;
    if (isZero && !this.#written.has(page)) return;
    this.#written.set(page);
    this.#write(bytes, page * PAGE_SIZE_BYTES);
  }

  putZero(page: number): void {
    this.put(page, ZERO_PAGE);
  }

  close(): void {
    closeSync(this.#fd);
  }

  #write(bytes: Uint8Array, position: number): void {
    try {
      // A file system that is nearly full takes a part of a page.
      for (let done = 0; done < PAGE_SIZE_BYTES;)
        done += writeSync(this.#fd, bytes, done, PAGE_SIZE_BYTES - done, position + done);
    } catch (cause) {
      if (!['ENOSPC', 'EDQUOT', 'EFBIG'].includes(systemErrorCode(cause) ?? '')) throw cause;
      throw new CheckpointError('STORAGE_FULL', 'there is no room to unpack the memory of the guest', {
        cause,
        hint: 'name a folder with room for all memory of the guest with --temp',
      });
    }
  }

  reader(): GuestReaderDescription {
    return { moduleUrl: import.meta.url, options: { path: this.path } };
  }
}

/** See `guest-reader.ts`. Options: { path } of a memory file. */
export function openGuestReader(options: Json): GuestReader {
  const { path } = options as { readonly path: string };
  const fd = openSync(path, 'r');
  return {
    readRuns(runs: PageRuns, into: Uint8Array): void {
      let filled = 0;
      for (let i = 0; i < runs.length; i += 2) {
        const wantedBytes = runs[i + 1]! * PAGE_SIZE_BYTES;
        const part = into.subarray(filled, filled + wantedBytes);
        let got = 0;
        while (got < wantedBytes) {
          const read = readSync(fd, part, got, wantedBytes - got, runs[i]! * PAGE_SIZE_BYTES + got);
          if (read === 0) break;
          got += read;
        }
        // Behind the end of a sparse file are zeros as well.
        part.fill(0, got);
        filled += wantedBytes;
      }
    },
    close: () => closeSync(fd),
  };
}
