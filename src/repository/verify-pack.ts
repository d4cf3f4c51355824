/**
 * Reads every frame of a pack, decodes every record down to its page, and compares the pages with the frame's digest.
 * That proves the whole way: a record applied to the wrong base gives another page, and another digest.
 */

import { CODEC_RUNS } from '../codec/codec-ids.js';
import type { Kernels } from '../kernels/kernels.js';
import type { CallOptions } from '../storage/backend.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import type { ChainReader } from './chain-reader.js';
import { damaged } from './damage.js';
import { FRAME_KIND_PAGES, type PageRecords } from './frame.js';
import type { OpenPack } from './pack-reader.js';
import { frameKeyOfRef, makeRef, MAX_DELTA_DEPTH, packOfRef, ZERO_REF, frameKey } from './record-ref.js';
import { BROKEN, RecordTable } from './record-table.js';

export interface PackCheck {
  readonly reader: ChainReader;
  readonly kernels: Kernels;
  /** Of all packs up to this one, by number. */
  readonly tables: Map<number, RecordTable>;
  /** A frame is found bad; the others are still looked at. */
  readonly onProblem: (key: string, error: unknown) => void;
  readonly onBytes: (sizeBytes: number) => void;
}

/**
 * Records checked together, 32 MiB of pages. The bases of scattered deltas lie in most frames of the base: the more
 * deltas at a time, the less often these are decoded.
 */
export const VERIFY_WINDOW_PAGES = 8192;

// Scratch in the kernels' memory: one page, and room for the hashes of a frame's records.
const PAGE_AT = 64;
const HASHES_AT = PAGE_AT + PAGE_SIZE_BYTES;

/** Enters the pack in `tables`. @throws what is not about damage: interruption, failures of the backend */
export async function verifyPack(pack: OpenPack, check: PackCheck, options: CallOptions): Promise<void> {
  const table = new RecordTable(pack);
  check.tables.set(pack.seq, table);
  for (const batch of batches(pack)) {
    try {
      await verifyFrames(pack, batch, table, check, options);
    } catch (error) {
      if (batch.length === 1) check.onProblem(pack.key, error);
      // One by one, to find the bad ones and check the others.
      else for (const frame of batch) await verifyAlone(pack, frame, table, check, options);
    }
    check.onBytes(batch.reduce((sum, frame) => sum + pack.frames[frame]!.lengthBytes, 0));
  }
}

async function verifyAlone(
  pack: OpenPack,
  frame: number,
  table: RecordTable,
  check: PackCheck,
  options: CallOptions,
): Promise<void> {
  try {
    await verifyFrames(pack, [frame], table, check, options);
  } catch (error) {
    check.onProblem(pack.key, error);
  }
}

async function verifyFrames(
  pack: OpenPack,
  frames: readonly number[],
  table: RecordTable,
  check: PackCheck,
  options: CallOptions,
): Promise<void> {
  const { reader } = check;
  const pageFrames = frames.filter((frame) => pack.frames[frame]!.kind === FRAME_KIND_PAGES);
  for (const frame of frames) {
    if (!pageFrames.includes(frame)) await reader.readBlob(pack.seq, frame, options);
  }
  const refs = pageFrames.flatMap((frame) =>
    Array.from({ length: pack.frames[frame]!.recordCount }, (_, record) => makeRef(pack.seq, frame, record)),
  );
  const pages = new Uint8Array(refs.length * PAGE_SIZE_BYTES);
  await reader.readPagesByRef(Float64Array.from(refs), pages, options);
  let at = 0;
  for (const frame of pageFrames) {
    const records = await reader.frame(pack.seq, frame, options);
    if (records.count !== pack.frames[frame]!.recordCount) {
      throw damaged(pack.key, 'record count differs from the directory', { frame });
    }
    const end = at + records.count * PAGE_SIZE_BYTES;
    if (digestOf(check.kernels, pages.subarray(at, end)) !== records.digest) {
      throw damaged(pack.key, 'decoded pages differ from the digest', { frame });
    }
    enterDepths(pack, frame, records, table, check.tables);
    at = end;
  }
}

/** Depth of each record, from that of its base. */
function enterDepths(
  pack: OpenPack,
  frame: number,
  records: PageRecords,
  table: RecordTable,
  tables: Map<number, RecordTable>,
): void {
  const start = table.startOf(frame);
  for (let record = 0; record < records.count; record++) {
    let depth = 0;
    const base = records.baseRefs[record]!;
    if (records.codecs[record] === CODEC_RUNS && base !== ZERO_REF) {
      if (frameKeyOfRef(base) >= frameKey(pack.seq, frame)) {
        throw damaged(pack.key, 'the base does not lie before the record', { frame, record });
      }
      const baseTable = tables.get(packOfRef(base));
      const position = baseTable?.find(base);
      const baseDepth = position === undefined ? BROKEN : baseTable!.depths[position]!;
      if (baseDepth === BROKEN) throw damaged(pack.key, 'the base is missing or damaged', { frame, record });
      depth = baseDepth + 1;
      if (depth > MAX_DELTA_DEPTH)
        throw damaged(pack.key, 'too many deltas on top of each other', { frame, record });
    }
    table.pages[start + record] = records.pages[record]!;
    table.depths[start + record] = depth;
  }
}

/** The frame digest of docs/format.md over decoded pages. */
export function digestOf(kernels: Kernels, pages: Uint8Array): bigint {
  const count = pages.length / PAGE_SIZE_BYTES;
  kernels.ensure(HASHES_AT + count * 8);
  const memory = kernels.bytes();
  const hashes = new DataView(memory.buffer, memory.byteOffset + HASHES_AT, count * 8);
  for (let i = 0; i < count; i++) {
    memory.set(pages.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES), PAGE_AT);
    hashes.setBigUint64(i * 8, kernels.hash64(PAGE_AT, PAGE_SIZE_BYTES, 0n), true);
  }
  return kernels.hash64(HASHES_AT, count * 8, 0n);
}

/** Frame numbers in order, together as many as fill the window. */
function* batches(pack: OpenPack): Generator<readonly number[]> {
  let batch: number[] = [];
  let records = 0;
  for (const [frame, { recordCount }] of pack.frames.entries()) {
    if (batch.length > 0 && records + recordCount > VERIFY_WINDOW_PAGES) {
      yield batch;
      batch = [];
      records = 0;
    }
    batch.push(frame);
    records += recordCount;
  }
  if (batch.length > 0) yield batch;
}
