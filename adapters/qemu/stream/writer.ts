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

import { CheckpointError } from '../../../src/errors.js';
import type { PageChunk } from '../../../src/hypervisor/restore.js';
import type { MemoryLayout, MemoryRegion } from '../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import { CoverageCursor } from './coverage.js';
import {
  FOOTER_BYTES,
  RAM_FLAG,
  RAM_SECTION_NAME,
  RAM_SECTION_VERSION,
  SECTION,
  SECTION_HEADER_BYTES,
  STREAM_MAGIC,
  STREAM_VERSION,
} from './format.js';

/** Far above the registration numbers that QEMU gives its own sections, so never one of the spliced ones. */
const RAM_SECTION_ID = 0x00ffff00;

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
  pages(signal?: AbortSignal): AsyncIterable<PageChunk>;
}

export interface StreamOptions {
  /**
   * Blocks whose zero pages may be left out: those of which the destination's memory is certainly fresh.
   * Never ROM, video memory or ACPI blocks, which the destination fills before it loads. Default: none.
   */
  readonly omitZeroPagesOf?: (regionId: string) => boolean;
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
  yield header(content.machineType);
  yield ramStart(content.layout);
  yield sectionStart(SECTION.END, RAM_SECTION_ID);
  yield* ramRecords(content, options);
  yield Buffer.concat([u64(RAM_FLAG.EOS), footer(RAM_SECTION_ID)]);
  await options.beforeDeviceState?.();
  options.signal?.throwIfAborted();
  yield Buffer.from(content.deviceSections);
  yield Buffer.concat([Buffer.from([SECTION.EOF, SECTION.VMDESC]), u32(2), Buffer.from('{}')]);
}

/** What the stream has at most, when no zero page is left out and none is all zero. */
export function maxStreamBytes(
  content: Pick<StreamContent, 'machineType' | 'layout' | 'deviceSections'>,
): number {
  const { regions } = content.layout;
  const pageCount = content.layout.sizeBytes / PAGE_SIZE_BYTES;
  const names = regions.reduce((sum, region) => sum + 1 + Buffer.byteLength(region.id), 0);
  const fixed =
    header(content.machineType).length + ramStart(content.layout).length + 5 + 8 + FOOTER_BYTES + 1 + 5 + 2;
  return fixed + pageCount * (8 + PAGE_SIZE_BYTES) + names + content.deviceSections.byteLength;
}

function header(machineType: string): Buffer {
  return Buffer.concat([
    u32(STREAM_MAGIC),
    u32(STREAM_VERSION),
    Buffer.from([SECTION.CONFIGURATION]),
    u32(Buffer.byteLength(machineType)),
    Buffer.from(machineType),
  ]);
}

function ramStart(layout: MemoryLayout): Buffer {
  const name = Buffer.from(RAM_SECTION_NAME);
  const head = Buffer.alloc(SECTION_HEADER_BYTES + name.length);
  head.writeUInt8(SECTION.START, 0);
  head.writeUInt32BE(RAM_SECTION_ID, 1);
  head.writeUInt8(name.length, 5);
  name.copy(head, 6);
  head.writeUInt32BE(RAM_SECTION_VERSION, 6 + name.length + 4);
  const blocks = layout.regions.flatMap((region) => [blockName(region), u64(region.sizeBytes)]);
  return Buffer.concat([
    head,
    u64(layout.sizeBytes + RAM_FLAG.MEM_SIZE),
    ...blocks,
    u64(RAM_FLAG.EOS),
    footer(RAM_SECTION_ID),
  ]);
}

async function* ramRecords(
  content: StreamContent,
  options: StreamOptions,
): AsyncGenerator<Buffer, void, void> {
  const { layout } = content;
  const cursor = new CoverageCursor(layout);
  let batch = Buffer.allocUnsafe(BATCH_BYTES);
  let length = 0;
  let coveredBytes = 0;
  let lastRegion: MemoryRegion | undefined;
  for await (const chunk of content.pages(options.signal)) {
    options.signal?.throwIfAborted();
    const region = cursor.accept(chunk);
    coveredBytes += chunk.pageCount * PAGE_SIZE_BYTES;
    if (chunk.bytes !== null || options.omitZeroPagesOf?.(region.id) !== true) {
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
  cursor.finish();
  if (length > 0) yield batch.subarray(0, length);
}

function blockName(region: MemoryRegion): Buffer {
  const name = Buffer.from(region.id);
  if (name.length === 0 || name.length > 255) {
    throw new CheckpointError('STREAM_MALFORMED', `"${region.id}" cannot be the name of a RAM block`);
  }
  return Buffer.concat([Buffer.from([name.length]), name]);
}

function sectionStart(type: number, id: number): Buffer {
  return Buffer.concat([Buffer.from([type]), u32(id)]);
}

function footer(id: number): Buffer {
  return sectionStart(SECTION.FOOTER, id);
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  writeU64(bytes, value, 0);
  return bytes;
}

/** `value` is a safe integer; two 32-bit writes are several times faster than one of a bigint. */
function writeU64(into: Buffer, value: number, at: number): number {
  into.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  return into.writeUInt32BE(value % 2 ** 32, at + 4);
}
