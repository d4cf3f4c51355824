/**
 * A complete migration stream made from a checkpoint, as `-incoming` of an unmodified QEMU loads it (7.2,
 * 10.0):
 *
 *     header, configuration | START ram: block list | END ram: every page | device sections | EOF
 *     | vmdesc "{}"
 *
 * Invariant: the EOF byte, without which no destination starts its VM, comes only after every page of every
 * block has been read and verified. A source that throws midway leaves a stream that cannot be loaded.
 */

import type { PageChunk } from '../../../src/hypervisor/restore.js';
import type { MemoryLayout, MemoryRegion } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import { Coverage } from './coverage.js';
import {
  blockName,
  footer,
  RAM_SECTION_ID,
  ramStart,
  sectionStart,
  streamHead,
  u32,
  u64,
  writeU64,
} from './encode.js';
import { RAM_FLAG, SECTION } from './format.js';

/**
 * Pages leave in buffers of this size. Large enough that a system call a buffer is no cost, small enough to
 * stay in cache.
 */
const BATCH_BYTES = 512 * 1024;
const MAX_RECORD_BYTES = 8 + 1 + 255 + PAGE_SIZE_BYTES;

export interface StreamContent {
  /** Resolved, such as pc-i440fx-7.2: the destination compares it with its own. */
  readonly machineType: string;
  /** Region ids are the names of QEMU's RAM blocks. */
  readonly layout: MemoryLayout;
  /** What `deviceSections` returned. */
  readonly deviceSections: Uint8Array;
  /** In any order. */
  pages(signal?: AbortSignal): AsyncIterable<PageChunk>;
}

export interface StreamOptions {
  /**
   * Blocks whose zero pages may be left out: those of which the destination's memory is certainly fresh.
   * Never ROM, video memory or ACPI blocks, which the destination fills before it loads. Default: none.
   */
  readonly omitZeroPagesOf?: (regionId: string) => boolean;
  /** Blocks whose pages the destination has already: they are looked at, and left out. Default: none. */
  readonly omitPagesOf?: (regionId: string) => boolean;
  /** Runs once every page has been read and written, before the first byte of device state. */
  readonly beforeDeviceState?: () => Promise<void>;
  /** Guest bytes covered so far, of `layout.sizeBytes`. */
  readonly onProgress?: (coveredBytes: number) => void;
  readonly signal?: AbortSignal;
}

/**
 * The stream as buffers of at most `BATCH_BYTES` (the device sections come in one piece). The consumer owns
 * each; at most one is held here, so the consumer's pace bounds the memory.
 * @throws REPO_DAMAGED when the source lacks a page, and whatever the source throws
 */
export async function* writeMigrationStream(
  content: StreamContent,
  options: StreamOptions = {},
): AsyncGenerator<Buffer, void, void> {
  yield streamHead(content.machineType);
  yield ramStart(content.layout);
  yield sectionStart(SECTION.END, RAM_SECTION_ID);
  yield* ramRecords(content, options);
  yield Buffer.concat([u64(RAM_FLAG.EOS), footer(RAM_SECTION_ID)]);
  await options.beforeDeviceState?.();
  options.signal?.throwIfAborted();
  yield Buffer.from(content.deviceSections);
  yield end();
}

function end(): Buffer {
  return Buffer.concat([Buffer.from([SECTION.EOF, SECTION.VMDESC]), u32(2), Buffer.from('{}')]);
}

/**
 * A stream with the device state alone, for a QEMU whose memory is right already: what `snapshot-load` takes from the
 * vmstate of a snapshot. It fits in one buffer.
 */
export function deviceStream(machineType: string, deviceSections: Uint8Array): Buffer {
  return Buffer.concat([streamHead(machineType), deviceSections, end()]);
}

async function* ramRecords(
  content: StreamContent,
  options: StreamOptions,
): AsyncGenerator<Buffer, void, void> {
  const { layout } = content;
  const coverage = new Coverage(layout);
  let batch = Buffer.allocUnsafe(BATCH_BYTES);
  let length = 0;
  let coveredBytes = 0;
  let lastRegion: MemoryRegion | undefined;
  for await (const chunk of content.pages(options.signal)) {
    options.signal?.throwIfAborted();
    const region = coverage.accept(chunk);
    coveredBytes += chunk.pageCount * PAGE_SIZE_BYTES;
    const isLeftOut =
      options.omitPagesOf?.(region.id) === true ||
      (chunk.bytes === null && options.omitZeroPagesOf?.(region.id) === true);
    if (!isLeftOut) {
      const name = blockName(region);
      const firstOffset = (chunk.firstPage - region.firstPage) * PAGE_SIZE_BYTES;
      const kind = chunk.bytes === null ? RAM_FLAG.ZERO : RAM_FLAG.PAGE;
      for (let i = 0; i < chunk.pageCount; i++) {
        if (length + MAX_RECORD_BYTES > batch.length) {
          yield batch.subarray(0, length);
          batch = Buffer.allocUnsafe(BATCH_BYTES);
          length = 0;
        }
        const sameBlock = lastRegion === region ? RAM_FLAG.CONTINUE : 0;
        length = writeU64(batch, firstOffset + i * PAGE_SIZE_BYTES + kind + sameBlock, length);
        if (sameBlock === 0) length += name.copy(batch, length);
        lastRegion = region;
        if (chunk.bytes === null) {
          batch[length++] = 0;
        } else {
          const from = i * PAGE_SIZE_BYTES;
          batch.set(chunk.bytes.subarray(from, from + PAGE_SIZE_BYTES), length);
          length += PAGE_SIZE_BYTES;
        }
      }
    }
    options.onProgress?.(coveredBytes);
  }
  coverage.finish();
  if (length > 0) yield batch.subarray(0, length);
}
