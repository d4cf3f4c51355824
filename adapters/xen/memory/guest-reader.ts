/**
 * Reads guest memory in a worker thread: the module that a Xen VM's reader description names.
 * Options: { version, domid, regions: [{ firstPage, pageCount, firstFrame }] }.
 *
 * A page that has no memory behind it at the moment of the copy reads as zero: a guest that runs may give
 * pages back at any time. Whether a page is absent in the checkpoint is decided by the tracker's look at the
 * stopped guest, not here.
 */

import { CheckpointError } from '../../../src/errors.js';
import { errnoName } from '../../../src/ffi/libc.js';
import type { GuestReader, GuestReaderDescription } from '../../../src/hypervisor/guest-reader.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES, countRunPages, type Json, type PageRuns } from '../../../src/types.js';
import { bindXen } from '../ffi/bind.js';
import { MAX_BATCH_PAGES, type LibraryCalls } from '../ffi/library.js';
import type { XenVersion } from '../ffi/versions.js';
import { firstFrameOf } from '../domain/physmap.js';

interface ReaderRegion {
  readonly firstPage: number;
  readonly pageCount: number;
  readonly firstFrame: number;
}

export interface ReaderOptions {
  readonly version: XenVersion;
  readonly domid: number;
  readonly regions: readonly ReaderRegion[];
}

const EINVAL = 22;
const ESRCH = 3;

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
      regions: layout.regions.map((region) => ({
        firstPage: region.firstPage,
        pageCount: region.pageCount,
        firstFrame: firstFrameOf(region),
      })),
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
  readonly #options: ReaderOptions;
  readonly #frames = new BigUint64Array(MAX_BATCH_PAGES);
  /** The low halves of `#frames`, to spare a bigint a page. */
  readonly #halves = new Uint32Array(this.#frames.buffer);
  readonly #errors = new Int32Array(MAX_BATCH_PAGES);
  #region: ReaderRegion | undefined;

  constructor(calls: LibraryCalls, options: ReaderOptions) {
    this.#calls = calls;
    this.#options = options;
  }

  readRuns(runs: PageRuns, into: Uint8Array): void {
    if (countRunPages(runs) * PAGE_SIZE_BYTES > into.length) {
      throw new RangeError(`${countRunPages(runs)} pages do not fit in ${into.length} bytes`);
    }
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
        this.#halves[2 * count++] = this.#frameOf(page);
        if (count === MAX_BATCH_PAGES) flush();
      }
    }
    flush();
  }

  close(): void {
    this.#calls.close();
  }

  #frameOf(page: number): number {
    let region = this.#region;
    if (region === undefined || page < region.firstPage || page >= region.firstPage + region.pageCount) {
      region = this.#options.regions.find(
        ({ firstPage, pageCount }) => page >= firstPage && page < firstPage + pageCount,
      );
      if (region === undefined) throw new RangeError(`page ${page} is in no memory region`);
      this.#region = region;
    }
    return region.firstFrame + (page - region.firstPage);
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

function unreadable(domid: number, errno: number): CheckpointError {
  if (errno === ESRCH)
    return new CheckpointError('VM_GONE', `domain ${domid} has ended while its memory was read`);
  const name = errnoName(errno);
  return new CheckpointError('VM_MEMORY_READ', `cannot map memory of domain ${domid}: ${name}`, {
    retryable: true,
    detail: { domid, errno: name },
  });
}
