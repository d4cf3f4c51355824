/**
 * Guest memory as a sparse file, page by page at its place: what an import unpacks into before a checkpoint
 * is made of it. The file is the caller's to remove.
 */

import { closeSync, openSync, readSync, writeSync } from 'node:fs';

import { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import type { GuestReader, GuestReaderDescription } from '../hypervisor/guest-reader.js';
import type { MemoryLayout } from '../hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES, type Json, type PageRuns } from '../types.js';

const ZERO_PAGE = new Uint8Array(PAGE_SIZE_BYTES);

export class MemoryFile {
  readonly layout: MemoryLayout;
  readonly path: string;
  /** Pages that were put with contents, zeros among them. */
  readonly present: DirtyBitmap;
  readonly #written: DirtyBitmap;
  readonly #fd: number;

  /** Creates `path`. */
  constructor(layout: MemoryLayout, path: string) {
    this.layout = layout;
    this.path = path;
    this.present = new DirtyBitmap(layout.pageSpan);
    this.#written = new DirtyBitmap(layout.pageSpan);
    this.#fd = openSync(path, 'wx', 0o600);
  }

  /** The last one of a page counts. `bytes` is one page. */
  put(page: number, bytes: Uint8Array): void {
    this.present.set(page);
    // A page of zeros costs nothing as long as nothing else was there.
    const isZero = Buffer.compare(bytes, ZERO_PAGE) === 0;
    if (isZero && !this.#written.has(page)) return;
    this.#written.set(page);
    writeSync(this.#fd, bytes, 0, PAGE_SIZE_BYTES, page * PAGE_SIZE_BYTES);
  }

  putZero(page: number): void {
    this.put(page, ZERO_PAGE);
  }

  close(): void {
    closeSync(this.#fd);
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
