/**
 * Reads guest memory out of the QEMU process, in a worker thread: the module that a KVM VM's reader
 * description names. Options: { pid, startTime, regions: [{ id, firstPage, pageCount, host }] }.
 */

import { processStartTimeSync } from '../../../src/host/process-identity.js';
import { CheckpointError } from '../../../src/errors.js';
import type { GuestReader, GuestReaderDescription } from '../../../src/hypervisor/guest-reader.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES, countRunPages, type Json, type PageRuns } from '../../../src/types.js';
import type { QemuProcess } from '../../qemu/peer-process.js';
import { MAX_IOVECS, readVectors } from './process-memory.js';
import type { RamBlock } from './ram-blocks.js';

interface ReaderRegion {
  readonly id: string;
  readonly firstPage: number;
  readonly pageCount: number;
  /** Address in the process. */
  readonly host: number;
}

interface ReaderOptions {
  readonly pid: number;
  readonly startTime: string;
  readonly regions: readonly ReaderRegion[];
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
      regions: layout.regions.map(({ id, firstPage, pageCount }, i) => ({
        id,
        firstPage,
        pageCount,
        host: blocks[i]!.host,
      })),
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
      let vectorCount = 0;
      let filled = 0;
      let batchBytes = 0;
      const flush = (): void => {
        readBatch(pid, regions, remote, vectorCount, into.subarray(filled, filled + batchBytes));
        filled += batchBytes;
        vectorCount = 0;
        batchBytes = 0;
      };
      if (countRunPages(runs) * PAGE_SIZE_BYTES > into.length) {
        throw new RangeError(`${countRunPages(runs)} pages do not fit in ${into.length} bytes`);
      }
      eachStretch(runs, regions, (address, lengthBytes) => {
        remote[vectorCount * 2] = BigInt(address);
        remote[vectorCount * 2 + 1] = BigInt(lengthBytes);
        batchBytes += lengthBytes;
        if (++vectorCount === MAX_IOVECS) flush();
      });
      flush();
    },
    close(): void {
      // Nothing is held open between calls.
    },
  };
}

/**
 * The runs as stretches of process memory. Neighbours in the flat page space may lie in different regions.
 */
function eachStretch(
  runs: PageRuns,
  regions: readonly ReaderRegion[],
  visit: (address: number, lengthBytes: number) => void,
): void {
  let region = regions[0];
  for (let i = 0; i < runs.length; i += 2) {
    const end = runs[i]! + runs[i + 1]!;
    for (let page = runs[i]!; page < end;) {
      const at = page;
      if (region === undefined || !holds(region, at)) region = regions.find((other) => holds(other, at));
      if (region === undefined) throw new RangeError(`page ${page} is in no memory region`);
      const stop = Math.min(end, region.firstPage + region.pageCount);
      visit(region.host + (page - region.firstPage) * PAGE_SIZE_BYTES, (stop - page) * PAGE_SIZE_BYTES);
      page = stop;
    }
  }
}

function holds(region: ReaderRegion, page: number): boolean {
  return page >= region.firstPage && page < region.firstPage + region.pageCount;
}

/**
 * Reads the batch whole: the kernel stops early at 2 GiB - 4096 a call, and at a page that cannot be read.
 */
function readBatch(
  pid: number,
  regions: readonly ReaderRegion[],
  remote: BigUint64Array,
  vectorCount: number,
  into: Uint8Array,
): void {
  let next = 0;
  let done = 0;
  while (done < into.length) {
    const read = readVectors(pid, remote.subarray(next * 2), vectorCount - next, into.subarray(done));
    if (read === 0) throw unreadable(Number(remote[next * 2]!), regions);
    done += read;
    for (let left = BigInt(read); left > 0n;) {
      const length = remote[next * 2 + 1]!;
      const used = left < length ? left : length;
      remote[next * 2]! += used;
      remote[next * 2 + 1]! -= used;
      left -= used;
      if (used === length) next++;
    }
  }
}

function unreadable(address: number, regions: readonly ReaderRegion[]): CheckpointError {
  const region = regions.find(
    ({ host, pageCount }) => address >= host && address < host + pageCount * PAGE_SIZE_BYTES,
  );
  const offset = region === undefined ? 0 : address - region.host;
  return new CheckpointError(
    'VM_MEMORY_READ',
    `cannot read guest memory at offset 0x${offset.toString(16)} of ${region?.id ?? 'an unknown region'}`,
    {
      hint: 'the memory may have been unplugged, or its huge page pool is empty',
      retryable: true,
      detail: { region: region?.id ?? '', offset },
    },
  );
}
