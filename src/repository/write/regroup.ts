/**
 * Writes pages that did not change once more, next to each other and on the record at the bottom of their
 * deltas, so that reading them takes few frames of few packs (docs/format.md, regrouping). Runs while the VM
 * runs, chunk by chunk.
 */

import { CODEC_RUNS, CODEC_SAME, CODEC_ZERO } from '../../kernels/codec-ids.js';
import { PageCodec, type EncodedPage } from '../../kernels/page-codec.js';
import { sharedKernels } from '../../kernels/shared-kernels.js';
import type { CallOptions } from '../../storage/backend.js';
import { unlessEnded } from '../../storage/interrupted.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import type { ChainReader } from '../read/chain-reader.js';
import { encodeFrame, type EncodedFrame } from '../../format/frame.js';
import type { PageMap } from '../read/page-map.js';
import { MAX_DELTA_DEPTH, ZERO_REF, type RecordRef } from '../../format/record-ref.js';
import { digestOfPages } from '../../format/page-digest.js';

/** Pages that are read at a time. It bounds memory, at about 8 KiB a page. */
const CHUNK_PAGES = 1024;
/**
 * Bytes of a frame. Frames as large as a checkpoint's own make a single page dear to read, and a page that
 * builds on a regrouped one takes two of them.
 */
const FRAME_PAYLOAD_BYTES = 32 * 1024;
const MAX_FRAME_RECORDS = 512;
/** A page whose record is longer than this costs much to store twice. */
const DENSE_PAGE_BYTES = 1024;

const ZERO_PAGE = new Uint8Array(PAGE_SIZE_BYTES);

export interface RegroupRequest {
  /** Pages to regroup, ascending; their records are committed. */
  readonly pages: Uint32Array;
  /** Where the pages lie now. The map is not changed. */
  readonly map: PageMap;
  /** No more than about so many bytes are stored, and half of it for dense pages. */
  readonly budgetBytes: number;
  /** Whether dense pages are regrouped, too. */
  readonly dense: boolean;
  /** zstd level, 0 = off. */
  readonly level: number;
  readonly reader: ChainReader;
  /** Ends the work early: what was appended by then is all there is. */
  readonly until?: AbortSignal | undefined;
  /** Takes a frame and gives the addresses of its records. */
  readonly append: (frame: EncodedFrame) => Promise<readonly RecordRef[]>;
}

/** Where pages lie from now on: one entry a page in each array. */
export interface Regrouped {
  readonly pages: readonly number[];
  readonly refs: readonly RecordRef[];
  readonly depths: readonly number[];
}

interface Entry {
  readonly page: number;
  readonly record: EncodedPage;
  readonly content: Uint8Array;
  readonly base: RecordRef;
  readonly depth: number;
}

/** @throws REPO_DAMAGED when an old record cannot be read; what `append` and the backend throw */
export async function regroup(request: RegroupRequest, options: CallOptions = {}): Promise<Regrouped> {
  const { pages, budgetBytes, until } = request;
  const result = { pages: [] as number[], refs: [] as RecordRef[], depths: [] as number[] };
  let storedBytes = 0;
  // The buffers are used again for each chunk: V8 counts such memory, and collects because of it.
  const room = Math.min(CHUNK_PAGES, pages.length) * PAGE_SIZE_BYTES;
  const buffers = { contents: new Uint8Array(room), bottoms: new Uint8Array(room) };
  for (let from = 0; from < pages.length && storedBytes < budgetBytes; from += CHUNK_PAGES) {
    const takesDense = request.dense && storedBytes < budgetBytes / 2;
    const chunk = pages.subarray(from, from + CHUNK_PAGES);
    const entries = await unlessEnded(until, options, (call) =>
      readChunk(request, chunk, buffers, takesDense, call),
    );
    if (entries === undefined) break;
    for (const some of framesOf(entries)) {
      const frame = frameOf(some, request.level);
      const refs = await request.append(frame);
      storedBytes += frame.bytes.length;
      result.pages.push(...frame.pages);
      result.refs.push(...refs);
      result.depths.push(...frame.depths);
    }
  }
  return result;
}

/**
 * The pages of a chunk as new records, without those that stay where they are. Good until the buffers are
 * used again.
 */
async function readChunk(
  { map, reader }: RegroupRequest,
  pages: Uint32Array,
  buffers: { readonly contents: Uint8Array; readonly bottoms: Uint8Array },
  takesDense: boolean,
  options: CallOptions,
): Promise<readonly Entry[]> {
  const codec = new PageCodec();
  const contents = buffers.contents.subarray(0, pages.length * PAGE_SIZE_BYTES);
  const below = buffers.bottoms.subarray(0, contents.length);
  const refs = Float64Array.from(pages, (page) => map.refOf(page));
  const bottoms = await reader.readWithBottoms(refs, contents, below, options);
  const entries: Entry[] = [];
  pages.forEach((page, i) => {
    const content = contents.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES);
    const bottom = below.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES);
    const depth = map.depthOf(page) - bottoms.deltas[i]! + 1;
    let record = codec.encode(content, bottom);
    let base = record.codec === CODEC_RUNS ? bottoms.refs[i]! : ZERO_REF;
    // The page is its own bottom, or came back to what that holds; or its bottom is a patch as deep as can
    // be.
    if (record.codec === CODEC_SAME || depth > MAX_DELTA_DEPTH) {
      record = codec.encode(content, ZERO_PAGE);
      base = ZERO_REF;
    }
    const payloadBytes = record.control.length + record.data.length;
    if (record.codec === CODEC_ZERO || (payloadBytes >= DENSE_PAGE_BYTES && !takesDense)) return;
    entries.push({ page, record, content, base, depth: base === ZERO_REF ? 0 : depth });
  });
  return entries;
}

function* framesOf(entries: readonly Entry[]): Generator<readonly Entry[]> {
  let some: Entry[] = [];
  let payloadBytes = 0;
  for (const entry of entries) {
    some.push(entry);
    payloadBytes += entry.record.control.length + entry.record.data.length;
    if (payloadBytes < FRAME_PAYLOAD_BYTES && some.length < MAX_FRAME_RECORDS) continue;
    yield some;
    some = [];
    payloadBytes = 0;
  }
  if (some.length > 0) yield some;
}

function frameOf(entries: readonly Entry[], level: number): EncodedFrame {
  return encodeFrame(
    {
      pages: Uint32Array.from(entries, ({ page }) => page),
      codecs: Uint8Array.from(entries, ({ record }) => record.codec),
      controlLengths: Uint16Array.from(entries, ({ record }) => record.control.length),
      dataLengths: Uint16Array.from(entries, ({ record }) => record.data.length),
      baseRefs: Float64Array.from(entries, ({ base }) => base),
      depths: Uint8Array.from(entries, ({ depth }) => depth),
      control: Buffer.concat(entries.map(({ record }) => record.control)),
      data: Buffer.concat(entries.map(({ record }) => record.data)),
      digest: digestOfPages(
        sharedKernels(),
        entries.map(({ content }) => content),
      ),
    },
    level,
  );
}
