/** A guest reader over pages in this thread's memory: lets a `PageShare` capture a trace instead of a VM. */

import type { GuestReader } from '../../src/hypervisor/guest-reader.js';
import { expandRuns, PAGE_SIZE_BYTES, type PageRuns } from '../../src/types.js';

let slots = new Map<number, number>();
let bytes: Uint8Array = new Uint8Array(0);

/** What the guest holds from here on: `contents` has 4096 bytes for each of `pages`. Not copied. */
export function holdPages(pages: Uint32Array, contents: Uint8Array): void {
  slots = new Map([...pages].map((page, i) => [page, i]));
  bytes = contents;
}

export function openGuestReader(): GuestReader {
  return {
    readRuns(runs: PageRuns, into: Uint8Array): void {
      expandRuns(runs).forEach((page, i) => {
        const at = slots.get(page)! * PAGE_SIZE_BYTES;
        into.set(bytes.subarray(at, at + PAGE_SIZE_BYTES), i * PAGE_SIZE_BYTES);
      });
    },
    close(): void {
      // Nothing is held open.
    },
  };
}
