/**
 * Writes guest memory in the QEMU process. The pages count as written for a userfaultfd that protects them, as if
 * QEMU had written to them itself.
 */

import { chunkRuns } from '../../../src/bitmap/run-chunks.js';
import { CheckpointError } from '../../../src/errors.js';
import { processStartTimeSync } from '../../../src/host/process-identity.js';
import { PAGE_SIZE_BYTES, countRunPages, type PageRuns } from '../../../src/types.js';
import type { QemuProcess } from '../../qemu/peer-process.js';
import { MAX_IOVECS, writeVectors } from './process-memory.js';
import { moveRuns, placeOf, type MappedRegion } from './stretches.js';

/** 1 MiB of zeros is written again and again. */
const ZERO_PAGES = 256;

export class GuestWriter {
  readonly #process: QemuProcess;
  readonly #regions: readonly MappedRegion[];
  readonly #remote = new BigUint64Array(MAX_IOVECS * 2);
  readonly #zeros = new Uint8Array(ZERO_PAGES * PAGE_SIZE_BYTES);

  constructor(process: QemuProcess, regions: readonly MappedRegion[]) {
    this.#process = process;
    this.#regions = regions;
  }

  /**
   * @param bytes the pages of `runs`, one after the other; null: zeros
   * @throws VM_GONE, VM_PERMISSION, VM_MEMORY_WRITE; what comes before the page that cannot be written is written
   */
  writeRuns(runs: PageRuns, bytes: Uint8Array | null): void {
    const { pid, startTime } = this.#process;
    if (processStartTimeSync(pid) !== startTime)
      throw new CheckpointError('VM_GONE', `process ${pid} has ended`);
    const moving = {
      regions: this.#regions,
      remote: this.#remote,
      move: (...batch: readonly [BigUint64Array, number, Uint8Array]) => writeVectors(pid, ...batch),
      stuck: unwritable,
    };
    if (bytes !== null) moveRuns(runs, bytes, moving);
    else
      for (const some of chunkRuns(runs, ZERO_PAGES))
        moveRuns(some, this.#zeros.subarray(0, countRunPages(some) * PAGE_SIZE_BYTES), moving);
  }
}

function unwritable(address: number, regions: readonly MappedRegion[]): CheckpointError {
  const { region, offset } = placeOf(address, regions);
  return new CheckpointError(
    'VM_MEMORY_WRITE',
    `cannot write guest memory at offset 0x${offset.toString(16)} of ${region}`,
    {
      hint: 'the memory may have been unplugged, or its huge page pool is empty',
      detail: { region, offset },
    },
  );
}
