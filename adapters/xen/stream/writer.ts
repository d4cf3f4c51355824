/**
 * Writes a checkpoint as the file of `xl save`, piece by piece; memory use does not grow with the guest. See
 * `format.ts` for the layers. Pages without memory behind them are left out: a restore populates what it
 * finds.
 */

import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import { regionOfPage } from '../../../src/hypervisor/memory-layout.js';
import type { PageChunk } from '../../../src/hypervisor/restore.js';
import { CheckpointError } from '../../../src/errors.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import type { XenDeviceState } from './device-state.js';
import type { XenVersion } from '../ffi/versions.js';
import { firstFrameOf } from '../domain/physmap.js';
import {
  EMULATOR_HEADER,
  LIBXC_ID,
  LIBXC_MARKER_BYTES,
  LIBXC_RECORD,
  LIBXC_VERSION,
  LIBXL_IDENT,
  LIBXL_RECORD,
  LIBXL_VERSION,
  MAX_RECORD_PAGES,
  XL_BYTE_ORDER,
  XL_HEADER_BYTES,
  XL_MAGIC,
  XL_MANDATORY_FLAGS,
} from './format.js';
import { encodeRecord, RECORD_HEADER_BYTES } from './records.js';

export interface SaveContent {
  /** The domain's configuration as libxl's JSON. */
  readonly config: string;
  /** Version of the hypervisor that the checkpoint was taken on. */
  readonly version: XenVersion;
  readonly state: XenDeviceState;
  readonly layout: MemoryLayout;
  /** Ascending, all pages of all regions. */
  readonly pages: AsyncIterable<PageChunk>;
  readonly onProgress?: (donePages: number, totalPages: number) => void;
}

const EMPTY = new Uint8Array(0);

/**
 * Each piece is a buffer of its own.
 * @throws STREAM_MALFORMED when a page that the state names is missing, and what `pages` throws
 */
export async function* writeSaveFile(content: SaveContent): AsyncGenerator<Uint8Array> {
  yield fileHeader(content.config);
  yield Buffer.concat([libxlHeader(), record(LIBXL_RECORD.libxcContext), libxcHeader(content)]);
  for (const one of content.state.before) yield encodeRecord(one);
  yield record(LIBXC_RECORD.staticDataEnd);
  // The frames of a PV guest's own table come ahead of its pages, everything else after them.
  const [frames, after] = [true, false].map((wanted) =>
    content.state.after.filter(({ type }) => (type === LIBXC_RECORD.pvFrames) === wanted),
  );
  for (const one of frames!) yield encodeRecord(one);
  yield* pageRecords(content);
  for (const one of after!) yield encodeRecord(one);
  yield record(LIBXC_RECORD.end);
  if (content.state.emulator !== undefined) yield emulatorRecord(content.state.emulator);
  yield record(LIBXL_RECORD.end);
}

function emulatorRecord(state: Uint8Array): Buffer {
  const header = Buffer.alloc(EMULATOR_HEADER.sizeBytes);
  header.writeUInt32LE(EMULATOR_HEADER.qemuUpstream, 0);
  return record(LIBXL_RECORD.emulatorContext, Buffer.concat([header, state]));
}

function record(type: number, body: Uint8Array = EMPTY): Buffer {
  return encodeRecord({ type, body });
}

function fileHeader(config: string): Buffer {
  const json = Buffer.from(`${config}\0`, 'utf8');
  const bytes = Buffer.alloc(XL_HEADER_BYTES + 4);
  XL_MAGIC.copy(bytes);
  bytes.writeUInt32LE(XL_BYTE_ORDER, 32);
  bytes.writeUInt32LE(XL_MANDATORY_FLAGS, 36);
  bytes.writeUInt32LE(4 + json.length, 44);
  bytes.writeUInt32LE(json.length, 48);
  return Buffer.concat([bytes, json]);
}

function libxlHeader(): Buffer {
  const bytes = Buffer.alloc(16);
  LIBXL_IDENT.copy(bytes);
  bytes.writeUInt32BE(LIBXL_VERSION, 8);
  return bytes;
}

function libxcHeader({ state, version }: SaveContent): Buffer {
  const bytes = Buffer.alloc(40);
  bytes.fill(0xff, 0, LIBXC_MARKER_BYTES);
  bytes.writeUInt32BE(LIBXC_ID, 8);
  bytes.writeUInt32BE(LIBXC_VERSION, 12);
  // Domain header: guest type, page shift, and which Xen it was.
  bytes.writeUInt32LE(state.guestType, 24);
  bytes.writeUInt16LE(12, 28);
  bytes.writeUInt32LE(version.major, 32);
  bytes.writeUInt32LE(version.minor, 36);
  return bytes;
}

/** PAGE_DATA records: count, reserved, u64 a frame with its type, then the pages. */
async function* pageRecords(content: SaveContent): AsyncGenerator<Uint8Array> {
  const frames = new FrameList(content.state.presentFrames);
  let batch = new PageBatch();
  let donePages = 0;
  for await (const chunk of content.pages) {
    // A chunk lies in one region.
    const firstFrame = frameOf(content.layout, chunk.firstPage);
    for (let i = 0; i < chunk.pageCount; i++) {
      const frame = firstFrame + i;
      const place = frames.take(frame);
      if (place < 0) continue;
      batch.add(
        frame,
        content.state.pageTypes?.[place] ?? 0,
        chunk.bytes?.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES),
      );
      if (batch.isFull) {
        donePages += batch.count;
        yield batch.finish();
        content.onProgress?.(donePages, frames.total);
        batch = new PageBatch();
      }
    }
  }
  if (batch.count > 0) yield batch.finish();
  if (frames.left > 0) {
    throw new CheckpointError(
      'STREAM_MALFORMED',
      `${frames.left} pages of the guest are not in the checkpoint`,
    );
  }
}

function frameOf(layout: MemoryLayout, page: number): number {
  const region = regionOfPage(layout, page);
  if (region === undefined) throw new RangeError(`page ${page} is in no memory region`);
  return firstFrameOf(region) + (page - region.firstPage);
}

/** The frames that are to be written, asked for in ascending order. */
class FrameList {
  readonly total: number;
  left: number;
  readonly #runs: Uint32Array;
  #at = 0;

  constructor(runs: Uint32Array) {
    this.#runs = runs;
    let total = 0;
    for (let i = 1; i < runs.length; i += 2) total += runs[i]!;
    this.total = total;
    this.left = total;
  }

  /** @returns how many came before it, -1 for a frame that is not to be written */
  take(frame: number): number {
    while (this.#at < this.#runs.length && frame >= this.#runs[this.#at]! + this.#runs[this.#at + 1]!) {
      this.#at += 2;
    }
    if (this.#at >= this.#runs.length || frame < this.#runs[this.#at]!) return -1;
    return this.total - this.left--;
  }
}

class PageBatch {
  readonly #head = Buffer.alloc(RECORD_HEADER_BYTES + 8 + 8 * MAX_RECORD_PAGES);
  readonly #pages = Buffer.allocUnsafe(MAX_RECORD_PAGES * PAGE_SIZE_BYTES);
  count = 0;

  get isFull(): boolean {
    return this.count === MAX_RECORD_PAGES;
  }

  add(frame: number, type: number, bytes: Uint8Array | undefined): void {
    const at = this.count * PAGE_SIZE_BYTES;
    if (bytes === undefined) this.#pages.fill(0, at, at + PAGE_SIZE_BYTES);
    else this.#pages.set(bytes, at);
    const entry = RECORD_HEADER_BYTES + 8 + 8 * this.count;
    this.#head.writeUInt32LE(frame, entry);
    // The type is in the upper four bits; it is 0 for every page of a translated guest.
    this.#head.writeUInt32LE((type << 28) >>> 0, entry + 4);
    this.count++;
  }

  finish(): Uint8Array {
    const headBytes = RECORD_HEADER_BYTES + 8 + 8 * this.count;
    const pageBytes = this.count * PAGE_SIZE_BYTES;
    this.#head.writeUInt32LE(LIBXC_RECORD.pageData, 0);
    this.#head.writeUInt32LE(headBytes - RECORD_HEADER_BYTES + pageBytes, 4);
    this.#head.writeUInt32LE(this.count, RECORD_HEADER_BYTES);
    return Buffer.concat([this.#head.subarray(0, headBytes), this.#pages.subarray(0, pageBytes)]);
  }
}
