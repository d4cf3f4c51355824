/**
 * Reads guest memory in a worker thread: the module that a Xen VM's reader description names.
 * Options: { version, domid, regions: [{ firstPage, pageCount, firstFrame }] }.
 *
 * A page that has no memory behind it at the moment of the copy reads as zero: a guest that runs may give
 * pages back at any time. Whether a page is absent in the checkpoint is decided by the tracker's look at the
 * stopped guest, not here.
 */

import type { GuestReader, GuestReaderDescription } from '../../../src/hypervisor/guest-reader.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES, type Json, type PageRuns } from '../../../src/types.js';
import { bindXen } from '../ffi/bind.js';
import { MAX_BATCH_PAGES, type LibraryCalls } from '../ffi/library.js';
import type { XenVersion } from '../ffi/versions.js';
import {
  checkedPageCount,
  FrameFinder,
  readerRegions,
  unreadable,
  type ReaderOptions,
} from './reader-regions.js';

const EINVAL = 22;

export function describeGuestReader(
  version: XenVersion,
  domid: number,
  layout: MemoryLayout,
): GuestReaderDescription {
  return {
    moduleUrl: import.meta.url,
    options: {
      version: { ...version },
      domid,
      regions: readerRegions(layout),
    },
  };
}

export function openGuestReader(options: Json): GuestReader {
  const parsed = options as unknown as ReaderOptions;
  return new FrameReader(bindXen(parsed.version), parsed);
}

/** Reads frames, also in-process, with any `LibraryCalls`. Closes `calls` with itself. */
export class FrameReader implements GuestReader {
  readonly #calls: LibraryCalls;
  readonly #finder: FrameFinder;
  readonly #options: ReaderOptions;
  readonly #frames = new BigUint64Array(MAX_BATCH_PAGES);
  /** The low halves of `#frames`, to spare a bigint a page. */
  readonly #halves = new Uint32Array(this.#frames.buffer);
  readonly #errors = new Int32Array(MAX_BATCH_PAGES);

  constructor(calls: LibraryCalls, options: ReaderOptions) {
    this.#calls = calls;
    this.#finder = new FrameFinder(options.regions);
    this.#options = options;
  }

  readRuns(runs: PageRuns, into: Uint8Array): void {
    checkedPageCount(runs, into);
    let count = 0;
    let filled = 0;
    const flush = (): void => {
      if (count > 0) this.#readBatch(count, into.subarray(filled, filled + count * PAGE_SIZE_BYTES));
      filled += count * PAGE_SIZE_BYTES;
      count = 0;
    };
    for (let i = 0; i < runs.length; i += 2) {
      const end = runs[i]! + runs[i + 1]!;
      for (let page = runs[i]!; page < end; page++) {
        this.#halves[2 * count++] = this.#finder.frameOf(page);
        if (count === MAX_BATCH_PAGES) flush();
      }
    }
    flush();
  }

  close(): void {
    this.#calls.close();
  }

  #readBatch(count: number, into: Uint8Array): void {
    const { domid } = this.#options;
    this.#errors.fill(0, 0, count);
    const done = this.#calls.readPages(domid, count, this.#frames, this.#errors, into);
    if (done.value < 0) throw unreadable(domid, done.errno);
    for (let i = 0; i < count; i++) {
      const errno = -this.#errors[i]!;
      if (errno === 0) continue;
      if (errno !== EINVAL) throw unreadable(domid, errno);
      into.fill(0, i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES);
    }
  }
}
