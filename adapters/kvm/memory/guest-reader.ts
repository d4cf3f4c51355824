/**
 * Reads guest memory out of the QEMU process, in a worker thread: the module that a KVM VM's reader
 * description names. Options: { pid, startTime, regions: [{ id, firstPage, pageCount, host }] }.
 */

import { processStartTimeSync } from '../../../src/host/process-identity.js';
import { CheckpointError } from '../../../src/errors.js';
import type { GuestReader, GuestReaderDescription } from '../../../src/hypervisor/guest-reader.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import type { Json, PageRuns } from '../../../src/types.js';
import type { QemuProcess } from '../../qemu/peer-process.js';
import { MAX_IOVECS, readVectors } from './process-memory.js';
import type { RamBlock } from './ram-blocks.js';
import { mappedRegions, moveRuns, placeOf, type MappedRegion } from './stretches.js';

interface ReaderOptions {
  readonly pid: number;
  readonly startTime: string;
  readonly regions: readonly MappedRegion[];
}

/** The description that makes a worker call `openGuestReader` below. */
export function describeGuestReader(
  process: QemuProcess,
  layout: MemoryLayout,
  blocks: readonly RamBlock[],
): GuestReaderDescription {
  return {
    moduleUrl: import.meta.url,
    options: {
      pid: process.pid,
      startTime: process.startTime,
      regions: mappedRegions(layout, blocks).map((region) => ({ ...region })),
    },
  };
}

/** @throws VM_GONE when the process has ended, or its id belongs to another one by now */
export function openGuestReader(options: Json): GuestReader {
  const { pid, startTime, regions } = options as unknown as ReaderOptions;
  if (processStartTimeSync(pid) !== startTime)
    throw new CheckpointError('VM_GONE', `process ${pid} has ended`);
  const remote = new BigUint64Array(MAX_IOVECS * 2);
  return {
    readRuns(runs: PageRuns, into: Uint8Array): void {
      moveRuns(runs, into, {
        regions,
        remote,
        move: (...batch) => readVectors(pid, ...batch),
        stuck: unreadable,
      });
    },
    close(): void {
      // Nothing is held open between calls.
    },
  };
}

function unreadable(address: number, regions: readonly MappedRegion[]): CheckpointError {
  const { region, offset } = placeOf(address, regions);
  return new CheckpointError(
    'VM_MEMORY_READ',
    `cannot read guest memory at offset 0x${offset.toString(16)} of ${region}`,
    {
      hint: 'the memory may have been unplugged, or its huge page pool is empty',
      retryable: true,
      detail: { region, offset },
    },
  );
}
