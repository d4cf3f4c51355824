/**
 * First half of verification: reads every frame of a pack once. Checksums, columns, blobs, and that each record builds on one
 * that is there and lies before it. What its pages come to is for `verify-pages.ts`.
 */

import { CODEC_RUNS } from '../codec/codec-ids.js';
import type { CallOptions } from '../storage/backend.js';
import { damaged } from './damage.js';
import { decodeBlobFrame, decodeFrameAsync, FRAME_KIND_PAGES, type PageRecords } from './frame.js';
import type { OpenPack, PackReader, StoredFrame } from './pack-reader.js';
import { frameKey, frameKeyOfRef, MAX_DELTA_DEPTH, packOfRef, ZERO_REF } from './record-ref.js';
import { BROKEN, RecordTable } from './record-table.js';

export interface PackCheck {
  readonly packs: PackReader;
  /** Of all packs up to this one, by number. */
  readonly tables: Map<number, RecordTable>;
  /** A frame is found bad; the others are still looked at. Throws on what is not about damage. */
  readonly onProblem: (key: string, error: unknown) => void;
  readonly onBytes: (sizeBytes: number) => void;
}

/** Frames being decompressed at a time, on libuv's threads. */
const DECODES_IN_FLIGHT = 4;

/** Enters the pack in `tables`. @throws what is not about damage: interruption, failures of the backend */
export async function verifyPack(pack: OpenPack, check: PackCheck, options: CallOptions): Promise<void> {
  const table = new RecordTable(pack);
  check.tables.set(pack.seq, table);
  await enterFrames(table, check, options);
}

/**
 * Enters depths once more, after frames were found bad by their pages: what builds on those is bad too.
 * @param tables all packs, in the order of their numbers
 */
export async function verifyPacksAgain(
  tables: Iterable<RecordTable>,
  check: PackCheck,
  options: CallOptions,
): Promise<void> {
  for (const table of tables) {
    table.depths.fill(BROKEN);
    await enterFrames(table, { ...check, onBytes: () => undefined }, options);
  }
}

async function enterFrames(table: RecordTable, check: PackCheck, options: CallOptions): Promise<void> {
  const { pack } = table;
  const numbers = pack.frames.map((_, frame) => frame).filter((frame) => !table.badFrames.has(frame));
  const fail = (frame: number, error: unknown): void => {
    check.onProblem(pack.key, error);
    table.badFrames.add(frame);
  };
  let inFlight: Decoding[] = [];
  const finish = async (): Promise<void> => {
    for (const { frame, records } of inFlight) {
      try {
        const read = await records;
        if (read !== undefined) enterRecords(table, frame, read, check.tables);
      } catch (error) {
        fail(frame, error);
      }
      check.onBytes(pack.frames[frame]!.lengthBytes);
    }
    inFlight = [];
  };
  for (let next = 0; next < numbers.length;) {
    try {
      for await (const stored of check.packs.frames(pack.seq, numbers.slice(next), options)) {
        next++;
        inFlight.push(startDecoding(stored));
        if (inFlight.length === DECODES_IN_FLIGHT) await finish();
      }
    } catch (error) {
      // The frame after those that came; go on behind it.
      fail(numbers[next]!, error);
      next++;
    }
    await finish();
  }
}

interface Decoding {
  readonly frame: number;
  /** Undefined for a blob. */
  readonly records: Promise<PageRecords | undefined>;
}

function startDecoding(stored: StoredFrame): Decoding {
  const { frame, entry, bytes } = stored;
  const records =
    entry.kind === FRAME_KIND_PAGES ? decodeFrameAsync(bytes, stored) : decodeBlob(bytes, stored);
  // Met when its turn comes.
  records.catch(() => undefined);
  return { frame, records };
}

// eslint-disable-next-line @typescript-eslint/require-await -- a failure has to be a rejection, as for the other kind
async function decodeBlob(bytes: Uint8Array, stored: StoredFrame): Promise<undefined> {
  decodeBlobFrame(bytes, stored);
  return undefined;
}

/** Page, digest and depth of each record, the last from that of its base. */
function enterRecords(
  table: RecordTable,
  frame: number,
  records: PageRecords,
  tables: Map<number, RecordTable>,
): void {
  const { pack } = table;
  if (records.count !== pack.frames[frame]!.recordCount) {
    throw damaged(pack.key, 'record count differs from the directory', { frame });
  }
  table.digests[frame] = records.digest;
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
