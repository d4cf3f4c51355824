/**
 * Writes a pack anew without the records that nobody needs (docs/format.md, forgetting). References stay what
 * they are: frames keep their numbers, and so do the records in them; what goes leaves a blank record behind,
 * or a frame of one. A patch frame says which of its records are blank; one without sources may become a frame of whole
 * pages instead, if those that are needed fit into one.
 */

import { CODEC_RAW, CODEC_RUNS } from '../../kernels/codec-ids.js';
import type { Kernels } from '../../kernels/kernels.js';
import type { CallOptions, SaveOptions } from '../../storage/backend.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import { BLANK_CONTROL, BLANK_DATA } from '../../format/blank-record.js';
import { ownerTag } from '../../format/chain-keys.js';
import type { ChainReader } from '../read/chain-reader.js';
import { damaged } from '../../records/damage.js';
import {
  decodeFrame,
  encodeBlobFrame,
  encodeFrame,
  FRAME_KIND_BLOB,
  FRAME_KIND_PAGES,
  FRAME_KIND_PATCH,
  type PageRecords,
} from '../../format/frame.js';
import { encodePatchFrame, readPatch, wholePages, type Patch } from '../../format/patch-frame.js';
import type { NeededOfPack } from './needed-records.js';
import type { StoredFrame } from '../read/pack-reader.js';
import { PackWriter } from '../write/pack-writer.js';
import { makeRef } from '../../format/record-ref.js';
import type { SweepSource } from './sweep-plan.js';
import { canBecomePages } from './thin-patch.js';
import { digestOf } from '../../format/page-digest.js';

/** zstd's own default level, also for packs that were written at another level. */
const LEVEL = 3;

interface ThinFrame {
  readonly bytes: Uint8Array;
  readonly kind: number;
  readonly recordCount: number;
  readonly isBlank: boolean;
}

/** A frame some of whose pages are not needed. */
interface PartlyNeeded {
  readonly stored: StoredFrame;
  readonly kept: readonly boolean[];
  /** Of a frame of pages. */
  readonly records?: PageRecords;
  /** Of a patch frame. */
  readonly patch?: Patch;
}

/** Frames are thinned together until they have so many records whose pages are read, 32 MiB, or take so much as stored. */
const BATCH_RECORDS = 8192;
const BATCH_BYTES = 16 * 1024 * 1024;

/**
 * Replaces the pack.
 * @param reader of the chain, one that gives blank records
 * @returns its new length
 * @throws REPO_DAMAGED when a record does not come to the page that it should, with the pack as it was; what
 *   the backend throws
 */
export async function thinPack(
  { backend, repositoryId, keys }: SweepSource,
  needed: NeededOfPack,
  reader: ChainReader,
  kernels: Kernels,
  options: SaveOptions,
): Promise<number> {
  const { pack } = needed;
  const replacing = { save: backend.replace.bind(backend) };
  const writer = new PackWriter(pack.key, pack.seq, ownerTag(repositoryId, keys.chain), replacing, options);
  try {
    // Blank frames at the end need not be there; those in between keep the numbers of the others.
    let blanks: ThinFrame[] = [];
    const append = async ({ bytes, kind, recordCount }: ThinFrame): Promise<void> => {
      writer.append(bytes, kind, recordCount);
      await writer.drained();
    };
    const numbers = pack.frames.map((_, frame) => frame);
    const write = async (thin: ThinFrame): Promise<void> => {
      if (thin.isBlank) {
        blanks.push(thin);
        return;
      }
      for (const blank of blanks) await append(blank);
      blanks = [];
      await append(thin);
    };
    let some: (ThinFrame | PartlyNeeded)[] = [];
    let [recordCount, storedBytes] = [0, 0];
    for await (const stored of reader.packs.frames(pack.seq, numbers, options)) {
      const frame = lookAt(stored, needed);
      some.push(frame);
      storedBytes += stored.bytes.length;
      if ('kept' in frame) recordCount += frame.kept.length + (frame.patch?.sources.length ?? 0);
      if (recordCount < BATCH_RECORDS && storedBytes < BATCH_BYTES) continue;
      for (const thin of await thinned(some, needed, reader, kernels, options)) await write(thin);
      some = [];
      [recordCount, storedBytes] = [0, 0];
    }
    for (const thin of await thinned(some, needed, reader, kernels, options)) await write(thin);
    return (await writer.finish()).sizeBytes;
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

/** What becomes of a frame, or what has to be read for that. @throws REPO_DAMAGED */
function lookAt(stored: StoredFrame, needed: NeededOfPack): ThinFrame | PartlyNeeded {
  const { entry, frame, bytes } = stored;
  const { kind, recordCount } = entry;
  const asIs: ThinFrame = { bytes, kind, recordCount, isBlank: false };
  if (!needed.hasAny(frame)) return blankFrame();
  if (kind === FRAME_KIND_BLOB) return asIs;
  const kept = Array.from({ length: recordCount }, (_, record) => needed.has(frame, record));
  if (!kept.includes(false)) return asIs;
  if (kind !== FRAME_KIND_PATCH) return { stored, kept, records: decodeFrame(bytes, stored) };
  const patch = readPatch(bytes, needed.pack.seq, stored);
  const isThinAlready = kept.filter((isKept) => !isKept).length === patch.blanks.length;
  return isThinAlready ? asIs : { stored, kept, patch };
}

/** The records whose pages have to be read: those of the frame, and the sources of a patch frame. */
function refsOf({ stored, kept, patch }: PartlyNeeded, packSeq: number): readonly number[] {
  const own = kept.map((_, record) => makeRef(packSeq, stored.frame, record));
  return patch === undefined ? own : [...own, ...patch.sources];
}

/**
 * Reads the pages of all frames that are needed in part together, and encodes those frames anew.
 * @returns one frame for each of `frames`
 */
async function thinned(
  frames: readonly (ThinFrame | PartlyNeeded)[],
  needed: NeededOfPack,
  reader: ChainReader,
  kernels: Kernels,
  options: CallOptions,
): Promise<readonly ThinFrame[]> {
  const refs = frames.flatMap((one) => ('kept' in one ? refsOf(one, needed.pack.seq) : []));
  const read = new Uint8Array(refs.length * PAGE_SIZE_BYTES);
  await reader.readPagesByRef(Float64Array.from(refs), read, options);
  let at = 0;
  const next = (count: number): Uint8Array => read.subarray(at, (at += count * PAGE_SIZE_BYTES));
  return frames.map((one) => {
    if (!('kept' in one)) return one;
    const { stored, kept, records, patch } = one;
    const pages = next(kept.length);
    // The new digest would hide what the old one shows.
    if (digestOf(kernels, pages) !== (records ?? patch!).digest)
      throw damaged(stored.key, 'decoded pages differ from the digest', { frame: stored.frame });
    if (records !== undefined) return encodeKept(records, kept, pages, kernels);
    return thinPatch(patch!, kept, pages, next(patch!.sources.length), kernels);
  });
}

/**
 * Never the frame as it was, even where nothing is gained: it would look worth thinning for ever.
 * @param pages of all records; changed
 */
function thinPatch(
  patch: Patch,
  kept: readonly boolean[],
  pages: Uint8Array,
  prefix: Uint8Array,
  kernels: Kernels,
): ThinFrame {
  const { pages: numbers, sources } = patch;
  const recordCount = kept.length;
  const blanks = Uint16Array.from([...kept.keys()].filter((record) => kept[record] !== true));
  for (const record of blanks) pages.fill(0, record * PAGE_SIZE_BYTES, (record + 1) * PAGE_SIZE_BYTES);
  const { bytes } = encodePatchFrame(
    { pages: numbers, contents: pages, sources, prefix, blanks, depth: 0, digest: digestOf(kernels, pages) },
    LEVEL,
  );
  const thin: ThinFrame = { bytes, kind: FRAME_KIND_PATCH, recordCount, isBlank: false };
  if (!canBecomePages(sources.length, recordCount - blanks.length, recordCount)) return thin;
  const raw = encodeKept(wholePages(patch, pages), kept, pages, kernels);
  // Many pages in one piece may take less than a few of them by themselves.
  return raw.bytes.length < bytes.length ? raw : thin;
}

/** @param pages of all records; changed */
function encodeKept(
  records: PageRecords,
  kept: readonly boolean[],
  pages: Uint8Array,
  kernels: Kernels,
): ThinFrame {
  const count = kept.lastIndexOf(true) + 1;
  const controls: Uint8Array[] = [];
  const datas: Uint8Array[] = [];
  const codecs = records.codecs.slice(0, count);
  const baseRefs = records.baseRefs.slice(0, count);
  for (let record = 0; record < count; record++) {
    const part = (offsets: Uint32Array): Uint8Array =>
      records.body.subarray(offsets[record], offsets[record + 1]);
    if (kept[record] === true) {
      controls.push(codecs[record] === CODEC_RAW ? new Uint8Array(0) : part(records.controlOffsets));
      datas.push(part(records.dataOffsets));
      continue;
    }
    codecs[record] = CODEC_RUNS;
    baseRefs[record] = 0;
    controls.push(Uint8Array.from(BLANK_CONTROL));
    datas.push(Uint8Array.from(BLANK_DATA));
    pages.fill(0, record * PAGE_SIZE_BYTES, (record + 1) * PAGE_SIZE_BYTES);
  }
  const { bytes } = encodeFrame(
    {
      pages: records.pages.slice(0, count),
      codecs,
      controlLengths: Uint16Array.from(controls, ({ length }) => length),
      dataLengths: Uint16Array.from(datas, ({ length }) => length),
      baseRefs,
      depths: new Uint8Array(count),
      control: Buffer.concat(controls),
      data: Buffer.concat(datas),
      digest: digestOf(kernels, pages.subarray(0, count * PAGE_SIZE_BYTES)),
    },
    LEVEL,
  );
  return { bytes, kind: FRAME_KIND_PAGES, recordCount: count, isBlank: false };
}

/** An empty blob, which takes the place of a frame of which nothing is needed. */
function blankFrame(): ThinFrame {
  return {
    bytes: encodeBlobFrame(new Uint8Array(0), 0),
    kind: FRAME_KIND_BLOB,
    recordCount: 0,
    isBlank: true,
  };
}
