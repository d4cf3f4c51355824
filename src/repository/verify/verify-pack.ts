/**
 * First half of verification: reads every frame of a pack once. Checksums, columns, blobs, and that each
 * record builds on one that is there and lies before it. What its pages come to is for `verify-pages.ts`.
 */

import type { CallOptions } from '../../storage/backend.js';
import { damaged } from '../../records/damage.js';
import { decodeBlobFrame, decodeFrameAsync, FRAME_KIND_BLOB, FRAME_KIND_PATCH } from '../../format/frame.js';
import { DecodeWindow } from '../read/decode-window.js';
import type { OpenPack, PackReader, StoredFrame } from '../read/pack-reader.js';
import { readPatch } from '../../format/patch-frame.js';
import {
  frameKey,
  frameKeyOfRef,
  MAX_DELTA_DEPTH,
  packOfRef,
  ZERO_REF,
  type RecordRef,
} from '../../format/record-ref.js';
import { BROKEN, RecordTable } from './record-table.js';

export interface PackCheck {
  readonly packs: PackReader;
  /** Records of all packs up to this one, by number of the pack. */
  readonly tables: Map<number, RecordTable>;
  /**
   * Enters a pack that records of another one are based on, unless it has been. Throws on what is not about
   * damage.
   */
  readonly onBasePack: (seq: number) => Promise<void>;
  /** A frame is found bad; the others are still looked at. Throws on what is not about damage. */
  readonly onProblem: (key: string, error: unknown) => void;
  readonly onBytes: (sizeBytes: number) => void;
}

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
  const window = new DecodeWindow<number, BuiltRecords | undefined>();
  const finishFirst = async (): Promise<void> => {
    const { frame, decoded } = window.take();
    try {
      const read = await decoded;
      if (read !== undefined) await reachBases(read, pack.seq, check);
      if (read !== undefined) enterRecords(table, frame, read, check.tables);
    } catch (error) {
      fail(frame, error);
    }
    check.onBytes(pack.frames[frame]!.lengthBytes);
  };
  for (let next = 0; next < numbers.length;) {
    try {
      for await (const stored of check.packs.frames(pack.seq, numbers.slice(next), options)) {
        next++;
        window.start(stored.frame, () => decode(pack.seq, stored));
        if (window.isFull) await finishFirst();
      }
    } catch (error) {
      // The frame after those that came is the bad one; the walk goes on behind it.
      fail(numbers[next]!, error);
      next++;
    }
    while (!window.isEmpty) await finishFirst();
  }
}

/** What the records of a frame are of, and what they build on. */
interface BuiltRecords {
  readonly count: number;
  readonly pages: Uint32Array;
  readonly digest: bigint;
  /** The base of each record; absent in a patch frame. */
  readonly baseRefs?: Float64Array;
  /** The sources that all records of a patch frame share. */
  readonly sources?: Float64Array;
}

/** Undefined for a blob, which has no records. */
async function decode(packSeq: number, stored: StoredFrame): Promise<BuiltRecords | undefined> {
  const { entry, bytes } = stored;
  if (entry.kind === FRAME_KIND_PATCH) {
    const patch = readPatch(bytes, packSeq, stored);
    return { ...patch, count: patch.pages.length };
  }
  if (entry.kind !== FRAME_KIND_BLOB) return decodeFrameAsync(bytes, stored);
  decodeBlobFrame(bytes, stored);
  return undefined;
}

/** Packs before this one that the records are based on. */
async function reachBases({ baseRefs, sources }: BuiltRecords, own: number, check: PackCheck): Promise<void> {
  const seqs = new Set<number>();
  for (const refs of [baseRefs ?? [], sources ?? []])
    for (const ref of refs) if (ref !== ZERO_REF) seqs.add(packOfRef(ref));
  for (const seq of seqs) if (seq < own && !check.tables.has(seq)) await check.onBasePack(seq);
}

/** Page, digest and depth of each record, the last from what it builds on. */
function enterRecords(
  table: RecordTable,
  frame: number,
  records: BuiltRecords,
  tables: Map<number, RecordTable>,
): void {
  const { pack } = table;
  if (records.count !== pack.frames[frame]!.recordCount) {
    throw damaged(pack.key, 'record count differs from the directory', { frame });
  }
  table.digests[frame] = records.digest;
  const start = table.startOf(frame);
  const depthOn = (base: RecordRef, record?: number): number => {
    const where: Record<string, number> = record === undefined ? { frame } : { frame, record };
    if (frameKeyOfRef(base) >= frameKey(pack.seq, frame)) {
      throw damaged(pack.key, 'the base does not lie before the record', where);
    }
    const baseTable = tables.get(packOfRef(base));
    const position = baseTable?.find(base);
    const baseDepth = position === undefined ? BROKEN : baseTable!.depths[position]!;
    if (baseDepth === BROKEN) throw damaged(pack.key, 'the base is missing or damaged', where);
    if (baseDepth >= MAX_DELTA_DEPTH) throw damaged(pack.key, 'too many deltas on top of each other', where);
    return baseDepth + 1;
  };
  let ofPatch = 0;
  for (const source of records.sources ?? []) ofPatch = Math.max(ofPatch, depthOn(source));
  for (let record = 0; record < records.count; record++) {
    // 0 for a whole page and on the zero page.
    const base = records.baseRefs?.[record] ?? ZERO_REF;
    table.pages[start + record] = records.pages[record]!;
    table.depths[start + record] = base === ZERO_REF ? ofPatch : depthOn(base, record);
  }
}
