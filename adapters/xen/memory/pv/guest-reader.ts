/**
 * Reads the memory of a suspended PV guest in a worker thread: frame numbers are translated, page tables made
 * independent of the machine. Options: { version, domid, tablePath, regions: [{ firstPage, pageCount,
 * firstFrame }] }.
 *
 * While the guest runs, pages read as zero: its page tables may be inconsistent then, and nothing that is
 * read while it runs is kept.
 */

import type { GuestReader, GuestReaderDescription } from '../../../../src/hypervisor/guest-reader.js';
import type { MemoryLayout } from '../../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES, expandRuns, type Json, type PageRuns } from '../../../../src/types.js';
import { bindXen } from '../../ffi/bind.js';
import { MAX_BATCH_PAGES, type LibraryCalls } from '../../ffi/library.js';
import type { XenVersion } from '../../ffi/versions.js';
import {
  checkedPageCount,
  FrameFinder,
  readerRegions,
  unreadable,
  type ReaderOptions,
} from '../reader-regions.js';
import { FrameTableFile, NO_FRAME, type FrameTable } from './frame-table.js';
import { tableLevel, toGuestFrames } from './page-table.js';

export interface PvReaderOptions extends ReaderOptions {
  readonly tablePath: string;
}

export function describePvReader(
  version: XenVersion,
  domid: number,
  tablePath: string,
  layout: MemoryLayout,
): GuestReaderDescription {
  return {
    moduleUrl: import.meta.url,
    options: {
      version: { ...version },
      domid,
      tablePath,
      regions: readerRegions(layout),
    },
  };
}

export function openGuestReader(options: Json): GuestReader {
  const parsed = options as unknown as PvReaderOptions;
  return new PvReader(bindXen(parsed.version), parsed);
}

/** Also used in-process, with any `LibraryCalls`. Closes `calls` with itself. */
export class PvReader implements GuestReader {
  readonly #calls: LibraryCalls;
  readonly #finder: FrameFinder;
  readonly #options: PvReaderOptions;
  readonly #file: FrameTableFile;

  constructor(calls: LibraryCalls, options: PvReaderOptions) {
    this.#calls = calls;
    this.#finder = new FrameFinder(options.regions);
    this.#options = options;
    this.#file = new FrameTableFile(options.tablePath);
  }

  readRuns(runs: PageRuns, into: Uint8Array): void {
    const total = checkedPageCount(runs, into);
    const frames = expandRuns(runs).map((page) => this.#finder.frameOf(page));
    const table = this.#file.read();
    if (table === undefined) {
      into.fill(0, 0, total * PAGE_SIZE_BYTES);
      return;
    }
    for (let at = 0; at < total; at += MAX_BATCH_PAGES) {
      const batch = frames.subarray(at, at + MAX_BATCH_PAGES);
      this.#readBatch(
        table,
        batch,
        into.subarray(at * PAGE_SIZE_BYTES, (at + batch.length) * PAGE_SIZE_BYTES),
      );
    }
  }

  close(): void {
    this.#calls.close();
  }

  #readBatch(table: FrameTable, frames: Uint32Array, into: Uint8Array): void {
    const { domid } = this.#options;
    const machine = new BigUint64Array(frames.length);
    // A frame that does not exist fails to map, and its page is left to the fill below.
    frames.forEach((frame, i) => (machine[i] = BigInt(table.machineFrames[frame] ?? NO_FRAME)));
    const errors = new Int32Array(frames.length);
    const done = this.#calls.readPages(domid, frames.length, machine, errors, into);
    if (done.value < 0) throw unreadable(domid, done.errno);
    frames.forEach((frame, i) => {
      const page = into.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES);
      if ((table.machineFrames[frame] ?? NO_FRAME) === NO_FRAME) {
        page.fill(0);
        return;
      }
      if (errors[i] !== 0) throw unreadable(domid, -errors[i]!);
      const level = tableLevel(table.types[frame]!);
      if (level > 0) toGuestFrames(page, level, (machineFrame) => table.guestFrameOf(machineFrame));
    });
  }
}
