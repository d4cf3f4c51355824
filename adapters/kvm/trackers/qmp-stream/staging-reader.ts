/**
 * Gives the workers the pages of the staging file: the module that a VM's reader description names while it
 * is streamed. Options: { descriptor }, valid in all threads of this process until the tracker is closed.
 */

import type { GuestReader, GuestReaderDescription } from '../../../../src/hypervisor/guest-reader.js';
import { PAGE_SIZE_BYTES, countRunPages, type Json, type PageRuns } from '../../../../src/types.js';
import { readWhole } from './staging-writer.js';

export function describeStagingReader(descriptor: number): GuestReaderDescription {
  return { moduleUrl: import.meta.url, options: { descriptor } };
}

export function openGuestReader(options: Json): GuestReader {
  const { descriptor } = options as unknown as { readonly descriptor: number };
  return {
    readRuns(runs: PageRuns, into: Uint8Array): void {
      const pages = countRunPages(runs);
      if (pages * PAGE_SIZE_BYTES > into.length)
        throw new RangeError(`${pages} pages do not fit in ${into.length} bytes`);
      let at = 0;
      for (let i = 0; i < runs.length; i += 2) {
        const lengthBytes = runs[i + 1]! * PAGE_SIZE_BYTES;
        readWhole(descriptor, into.subarray(at, at + lengthBytes), runs[i]! * PAGE_SIZE_BYTES);
        at += lengthBytes;
      }
    },
    close(): void {
      // The descriptor belongs to the tracker.
    },
  };
}
