/**
 * Writes a pack anew without the records that nobody needs (docs/format.md, forgetting). References stay what
 * they are: frames keep their numbers, and so do the records in them; what goes leaves a blank record behind,
 * or a frame of one. A patch frame has no place for blank records: one without sources becomes a frame of whole
 * pages, if those that are needed fit into one.
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
import { readPatch, unpackPatch } from '../../format/patch-frame.js';
import type { NeededOfPack } from './needed-records.js';
import type { StoredFrame } from '../read/pack-reader.js';
import { PackWriter } from '../write/pack-writer.js';
import { makeRef } from '../../format/record-ref.js';
import type { SweepSource } from './sweep-plan.js';
import { canThinPatch } from './thin-patch.js';
import { digestOf } from '../../format/page-digest.js';

/** zstd's own default level, also for packs that were written at another level. */
const LEVEL = 3;

interface ThinFrame {
  readonly bytes: Uint8Array;
  readonly kind: number;
  readonly recordCount: number;
  readonly isBlank: boolean;
}

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
    for await (const stored of reader.packs.frames(pack.seq, numbers, options)) {
      const thin = await thinFrame(stored, needed, reader, kernels, options);
      if (thin.isBlank) {
        blanks.push(thin);
        continue;
      }
      for (const blank of blanks) await append(blank);
      blanks = [];
      await append(thin);
    }
    return (await writer.finish()).sizeBytes;
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

async function thinFrame(
  stored: StoredFrame,
  needed: NeededOfPack,
  reader: ChainReader,
  kernels: Kernels,
  options: CallOptions,
): Promise<ThinFrame> {
  const { entry, frame, bytes } = stored;
  const { kind, recordCount } = entry;
  const asIs: ThinFrame = { bytes, kind, recordCount, isBlank: false };
  if (!needed.hasAny(frame)) return blankFrame();
  if (kind === FRAME_KIND_BLOB) return asIs;
  if (kind === FRAME_KIND_PATCH) return thinPatch(stored, needed, kernels) ?? asIs;
  const records = decodeFrame(bytes, stored);
  const kept = Array.from({ length: records.count }, (_, record) => needed.has(frame, record));
  if (!kept.includes(false)) return asIs;
  const pages = new Uint8Array(records.count * PAGE_SIZE_BYTES);
  const refs = Float64Array.from(kept, (_, record) => makeRef(needed.pack.seq, frame, record));
  await reader.readPagesByRef(refs, pages, options);
  // The new digest would hide what the old one shows.
  if (digestOf(kernels, pages) !== records.digest)
    throw damaged(stored.key, 'decoded pages differ from the digest', { frame });
  return encodeKept(records, kept, pages, kernels);
}

/** Undefined when it is to stay as it is. @throws REPO_DAMAGED */
function thinPatch(
  { key, frame, bytes }: StoredFrame,
  needed: NeededOfPack,
  kernels: Kernels,
): ThinFrame | undefined {
  const place = { key, frame };
  const patch = readPatch(bytes, needed.pack.seq, place);
  const kept = Array.from(patch.pages, (_, record) => needed.has(frame, record));
  const keptCount = kept.filter(Boolean).length;
  if (keptCount === kept.length || !canThinPatch(patch.sources.length, keptCount, kept.length))
    return undefined;
  const records = unpackPatch(patch, new Uint8Array(0), place);
  if (digestOf(kernels, records.body) !== records.digest)
    throw damaged(key, 'decoded pages differ from the digest', { frame });
  const thin = encodeKept(records, kept, records.body.slice(), kernels);
  // Many pages in one piece may take less than a few of them by themselves.
  return thin.bytes.length < bytes.length ? thin : undefined;
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
