/**
 * Makes frames of what the encoder put out for a batch of pages: records one after the other in two streams,
 * without gaps.
 *
 *     page      0     1     2     3     4
 *     codec    RUNS  SAME  RUNS  RAW   RUNS
 *     control  | 0 |       | 2 |       | 4 |      places and lengths of runs
 *     data     | 0 |       | 2 | 3 3 3 | 4 |      new bytes
 *
 * Pages that are better patched (`patch-plan.ts`) go into patch frames. Their records are left out of the
 * streams, later ones move up to them, and what remains is cut into frames of about FRAME_PAYLOAD_BYTES:
 *
 *     2 is patched:  control | 0 | 4 |   data | 0 | 3 3 3 | 4 |   + a patch frame of page 2
 */

import { MAX_LEVEL } from '../ffi/zstd.js';
import { encodeFrame, FRAME_PAYLOAD_BYTES, type EncodedFrame } from '../format/frame.js';
import { encodePatchFrame } from '../format/patch-frame.js';
import { MAX_DELTA_DEPTH, ZERO_REF } from '../format/record-ref.js';
import { CODEC_RAW, CODEC_RUNS, CODEC_SAME, CODEC_ZERO } from '../kernels/codec-ids.js';
import { BASE_ZERO_PAGE, type Kernels } from '../kernels/kernels.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import type { Arena } from './arena.js';
import type { EncodeReply, EncodeRequest } from './messages.js';
import { planPatches, type PatchCandidate, type PatchGroup, type PreviousPage } from './patch-plan.js';

/**
 * A page with this many bytes of runs or more is patched instead. 256, 512, 1024 and 2048 were tried on the
 * first epochs of six recorded workloads: 1024 stored least on compile, 512 on sqlite; they differ by 3 % and
 * less elsewhere.
 */
const DENSE_PAGE_BYTES = 1024;
/** One page alone is not worth a frame. */
const FEWEST_PATCHES = 2;
/**
 * Above the level of other frames. On the first epochs of recorded workloads patches got 2 % (sequential) to
 * 6 % (compile, web) smaller than at level 3, for up to twice the time; those of a memory stressor got 6 %
 * larger.
 */
const PATCH_LEVELS = 3;

/** What the encoder worked on; its results lie in the arena. */
export interface EncodedBatch {
  readonly pages: Uint32Array;
  /** Where their new contents lie, one after the other. */
  readonly newPages: number;
  readonly request: EncodeRequest;
}

/** A batch with the encoder's results: one entry a page in each array. */
interface Batch extends EncodedBatch {
  readonly codecs: Uint8Array;
  readonly controlLengths: Uint16Array;
  readonly dataLengths: Uint16Array;
  /** Where the page's previous version lies, or what the encoder takes instead of one. */
  readonly bases: Uint32Array;
}

export class FrameCutter {
  constructor(
    private readonly kernels: Kernels,
    private readonly arena: Arena,
    /** zstd level, 0 = off. */
    private readonly level: number,
  ) {}

  cut(encoded: EncodedBatch): EncodeReply {
    const batch = this.#withResults(encoded);
    const groups = this.#patchGroups(batch);
    const frames = this.#runFrames(batch, groups);
    for (const group of groups) frames.push(this.#patchFrame(batch, group));
    return { frames, ...summary(batch) };
  }

  #withResults(encoded: EncodedBatch): Batch {
    const { buffer } = this.kernels.bytes();
    const { codecs, controlLengths, dataLengths, bases } = this.arena;
    const count = encoded.pages.length;
    return {
      ...encoded,
      codecs: new Uint8Array(buffer, codecs, count),
      controlLengths: new Uint16Array(buffer, controlLengths, count),
      dataLengths: new Uint16Array(buffer, dataLengths, count),
      bases: new Uint32Array(buffer, bases, count),
    };
  }

  /** Frames of the records that are not patched. */
  #runFrames(batch: Batch, groups: readonly PatchGroup[]): EncodedFrame[] {
    const { codecs, controlLengths, dataLengths } = batch;
    const isPatched = new Uint8Array(codecs.length);
    for (const { members } of groups) for (const i of members) isPatched[i] = 1;
    const control = new RecordStream(this.kernels.bytes(), this.arena.control);
    const data = new RecordStream(this.kernels.bytes(), this.arena.data);
    const frames: EncodedFrame[] = [];
    let members: number[] = [];
    const flush = (): void => {
      if (members.length === 0) return;
      frames.push(this.#runFrame(batch, members, control.cut(), data.cut()));
      members = [];
    };
    for (let i = 0; i < codecs.length; i++) {
      if (!isStored(codecs[i]!)) continue;
      if (isPatched[i] === 1) {
        control.leaveOut(controlLengths[i]!);
        data.leaveOut(dataLengths[i]!);
        continue;
      }
      members.push(i);
      control.keep(controlLengths[i]!);
      data.keep(dataLengths[i]!);
      if (control.keptBytes + data.keptBytes >= FRAME_PAYLOAD_BYTES) flush();
    }
    flush();
    return frames;
  }

  #runFrame(batch: Batch, members: readonly number[], control: Uint8Array, data: Uint8Array): EncodedFrame {
    const { pages, codecs, controlLengths, dataLengths, request } = batch;
    const { baseRefs, depths } = request;
    const records = {
      pages: Uint32Array.from(members, (i) => pages[i]!),
      codecs: Uint8Array.from(members, (i) => codecs[i]!),
      controlLengths: Uint16Array.from(members, (i) => controlLengths[i]!),
      dataLengths: Uint16Array.from(members, (i) => dataLengths[i]!),
      baseRefs: Float64Array.from(members, (i) => (codecs[i] === CODEC_RUNS ? baseRefs[i]! : 0)),
      depths: Uint8Array.from(members, (i) =>
        codecs[i] === CODEC_RUNS && baseRefs[i] !== ZERO_REF ? depths[i]! + 1 : 0,
      ),
      control,
      data,
      digest: this.#digest(members, batch.newPages),
    };
    return encodeFrame(records, this.level);
  }

  /**
   * Pages that are better patched than stored as runs or whole. Not without previous versions, as in a first
   * checkpoint.
   */
  #patchGroups({
    codecs,
    controlLengths,
    dataLengths,
    bases,
    newPages,
    request,
  }: Batch): readonly PatchGroup[] {
    if (this.level === 0) return [];
    const { baseRefs, depths, whole } = request;
    const candidates: PatchCandidate[] = [];
    const previous: PreviousPage[] = [];
    codecs.forEach((codec, position) => {
      const payloadBytes = controlLengths[position]! + dataLengths[position]!;
      if (isStored(codec) && whole[position] === 0 && payloadBytes >= DENSE_PAGE_BYTES) {
        const content = newPages + position * PAGE_SIZE_BYTES;
        candidates.push({ position, content, hasRuns: codec === CODEC_RUNS });
      }
      const base = bases[position]!;
      const isUsable = baseRefs[position] !== ZERO_REF && depths[position]! < MAX_DELTA_DEPTH;
      if (codec !== CODEC_SAME && base > BASE_ZERO_PAGE && isUsable)
        previous.push({ position, content: base });
    });
    if (candidates.length < FEWEST_PATCHES || previous.length === 0) return [];
    return planPatches((content) => this.#anchorsOf(content), candidates, previous);
  }

  #anchorsOf(content: number): Int32Array {
    const { anchors } = this.arena;
    const count = this.kernels.findAnchors(content, anchors);
    return new Int32Array(this.kernels.bytes().buffer, anchors, count);
  }

  #patchFrame({ pages, bases, newPages, request }: Batch, { members, sources }: PatchGroup): EncodedFrame {
    const { baseRefs, depths } = request;
    const inOrder = [...sources].sort((a, b) => baseRefs[a]! - baseRefs[b]!);
    return encodePatchFrame(
      {
        pages: Uint32Array.from(members, (i) => pages[i]!),
        contents: this.#gathered(members.map((i) => newPages + i * PAGE_SIZE_BYTES)),
        sources: Float64Array.from(inOrder, (i) => baseRefs[i]!),
        prefix: this.#gathered(inOrder.map((i) => bases[i]!)),
        depth: inOrder.reduce((most, i) => Math.max(most, depths[i]! + 1), 0),
        digest: this.#digest(members, newPages),
      },
      Math.min(this.level + PATCH_LEVELS, MAX_LEVEL),
    );
  }

  /** Copies of the pages that lie at some offsets, one after the other. */
  #gathered(offsets: readonly number[]): Uint8Array {
    const memory = this.kernels.bytes();
    const into = new Uint8Array(offsets.length * PAGE_SIZE_BYTES);
    offsets.forEach((at, i) => into.set(memory.subarray(at, at + PAGE_SIZE_BYTES), i * PAGE_SIZE_BYTES));
    return into;
  }

  /** The digest of `format/page-digest.ts`, of pages where they lie. */
  #digest(members: readonly number[], newPages: number): bigint {
    const hashes = new DataView(this.kernels.bytes().buffer, this.arena.hashes, members.length * 8);
    members.forEach((member, i) => {
      const hash = this.kernels.hash64(newPages + member * PAGE_SIZE_BYTES, PAGE_SIZE_BYTES, 0n);
      hashes.setBigUint64(i * 8, hash, true);
    });
    return this.kernels.hash64(this.arena.hashes, members.length * 8, 0n);
  }
}

/**
 * One of the encoder's streams. Records are kept or left out in their order; what is kept moves up, and is
 * cut off for each frame.
 */
class RecordStream {
  #from: number;
  /** End of what is kept. */
  #to: number;
  /** Where the encoder put the next record. */
  #next: number;

  constructor(
    private readonly memory: Uint8Array,
    start: number,
  ) {
    this.#from = start;
    this.#to = start;
    this.#next = start;
  }

  /** Kept since the last cut. */
  get keptBytes(): number {
    return this.#to - this.#from;
  }

  keep(lengthBytes: number): void {
    if (this.#next !== this.#to) this.memory.copyWithin(this.#to, this.#next, this.#next + lengthBytes);
    this.#to += lengthBytes;
    this.#next += lengthBytes;
  }

  leaveOut(lengthBytes: number): void {
    this.#next += lengthBytes;
  }

  /** What is kept since the last cut; good until the memory grows. */
  cut(): Uint8Array {
    const kept = this.memory.subarray(this.#from, this.#to);
    this.#from = this.#to;
    return kept;
  }
}

/** The page has a record in the streams. */
function isStored(codec: number): boolean {
  return codec === CODEC_RAW || codec === CODEC_RUNS;
}

/** What the reply says beside the frames. */
function summary({ pages, codecs, dataLengths, request }: Batch): Omit<EncodeReply, 'frames'> {
  const zeroPages: number[] = [];
  const reverted: number[] = [];
  let samePageCount = 0;
  let changedBytes = 0;
  codecs.forEach((codec, i) => {
    if (isStored(codec)) changedBytes += dataLengths[i]!;
    else if (codec === CODEC_ZERO) zeroPages.push(pages[i]!);
    else if (codec === CODEC_SAME && request.older[i] === 1) reverted.push(i);
    else if (codec === CODEC_SAME) samePageCount++;
  });
  return {
    zeroPages: Uint32Array.from(zeroPages),
    reverted: Uint32Array.from(reverted),
    samePageCount,
    changedBytes,
  };
}
