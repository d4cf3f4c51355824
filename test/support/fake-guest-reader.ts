/** Reads the memory of a `FakeGuest` in any thread or process: the module that its VM's reader description names. */

import { closeSync, existsSync, openSync, readSync } from 'node:fs';

import { CheckpointError } from '../../src/errors.js';
import type { GuestReader } from '../../src/hypervisor/guest-reader.js';
import { PAGE_SIZE_BYTES, type Json, type PageRuns } from '../../src/types.js';

export interface FakeReaderOptions {
  /** The whole flat page space, gaps included, page after page. */
  readonly memoryPath: string;
  /** While this file exists, every read fails with VM_MEMORY_READ. */
  readonly faultPath: string;
  /** While this file exists, every read fails with VM_GONE. */
  readonly gonePath: string;
}

export function openGuestReader(options: Json): GuestReader {
  const { memoryPath, faultPath, gonePath } = options as unknown as FakeReaderOptions;
  const memory = openSync(memoryPath, 'r');
  return {
    readRuns(runs: PageRuns, into: Uint8Array): void {
      if (existsSync(gonePath)) throw new CheckpointError('VM_GONE', 'the fake VM has ended');
      if (existsSync(faultPath)) throw new CheckpointError('VM_MEMORY_READ', 'reading the fake VM fails');
      let filled = 0;
      for (let i = 0; i < runs.length; i += 2) {
        const lengthBytes = runs[i + 1]! * PAGE_SIZE_BYTES;
        if (filled + lengthBytes > into.length)
          throw new RangeError(`pages do not fit in ${into.length} bytes`);
        // Node.js does not read into shared memory directly.
        const pages = new Uint8Array(lengthBytes);
        const read = readSync(memory, pages, 0, lengthBytes, runs[i]! * PAGE_SIZE_BYTES);
        if (read !== lengthBytes)
          throw new CheckpointError('VM_MEMORY_READ', `page ${runs[i]!} is not there`);
        into.set(pages, filled);
        filled += lengthBytes;
      }
    },
    close: () => closeSync(memory),
  };
}
