/**
 * Reading guest memory from a worker thread.
 *
 * A worker cannot be handed an object with file descriptors and foreign functions in it, so the VM hands out
 * a description: which module to load, and plain data for it. The core loads the module by its URL and never
 * learns which hypervisor it belongs to.
 */

import type { Json, PageRuns } from '../types.js';

export interface GuestReaderDescription {
  /** file: URL of a module that exports `openGuestReader`. */
  readonly moduleUrl: string;
  readonly options: Json;
}

export interface GuestReader {
  /**
   * Copies the pages of `runs` one after the other into `into`, which holds at least that many pages.
   * Synchronous.
   * @throws VM_GONE, VM_PERMISSION, VM_MEMORY_READ
   */
  readRuns(runs: PageRuns, into: Uint8Array): void;
  close(): void;
}

export interface GuestReaderModule {
  openGuestReader(options: Json): GuestReader;
}
