/**
 * Turns captured pages into records of the repository: for each share, find out which bases it lacks, fetch
 * those from the repository, have the share encode, append the frames.
 */

import type { EncodeReply, MissingRequest, ShareOperations } from '../../pool/messages.js';
import { ENCODE_BATCH_PAGES } from '../../pool/messages.js';
import type { SharePool } from '../../pool/share-pool.js';
import type { ChainReader } from '../../repository/read/chain-reader.js';
import type { CheckpointWriter } from '../../repository/write/checkpoint-writer.js';
import type { PageMap } from '../../repository/read/page-map.js';
import { MAX_DELTA_DEPTH } from '../../format/record-ref.js';
import { countRunPages, PAGE_SIZE_BYTES, type PageRuns } from '../../types.js';
import { faultPoint } from '../fault-points.js';
import { chunkRuns } from '../../bitmap/run-chunks.js';

/**
 * Pages that a full copy takes at a time. It has no previous versions in which moved content could be found,
 * and what a batch needs in memory is never given back. Highest resident size of a watcher of a 1 GiB guest:
 * 513 MiB with batches of 4096, 301 with 1024, 281 with 512; the base takes up to 6 % longer with 512 than
 * with 1024, and 15 % with 256.
 */
const FULL_COPY_BATCH_PAGES = 512;

/** What the pages of a batch are held against: see `MissingRequest`. */
type Bases = Pick<MissingRequest, 'baseRefs' | 'depths' | 'whole' | 'older'>;

export interface PageWriterDeps {
  readonly pool: SharePool;
  readonly writer: CheckpointWriter;
  readonly map: PageMap;
  /** Reads committed records of the chain. */
  readonly reader: ChainReader;
  readonly signal: AbortSignal | undefined;
}

export interface PageWriterTotals {
  unchangedPages: number;
  changedBytes: number;
}

export class PageWriter {
  readonly #deps: PageWriterDeps;
  readonly totals: PageWriterTotals = { unchangedPages: 0, changedBytes: 0 };

  constructor(deps: PageWriterDeps) {
    this.#deps = deps;
  }

  /**
   * Copies and encodes pages batch by batch, so that memory stays bounded however many they are.
   * @param admit keep these pages as previous versions (the writable working set does, a full copy does not)
   */
  async copyAndWrite(runs: PageRuns, admit: boolean, onBatch: (pageCount: number) => void): Promise<void> {
    const { pool } = this.#deps;
    await pool.widen(countRunPages(runs));
    const parts = pool.split(runs);
    await allSettledFirstError(
      pool.shares.map(async (share, i) => {
        for (const batch of chunkRuns(parts[i]!, admit ? ENCODE_BATCH_PAGES : FULL_COPY_BATCH_PAGES)) {
          this.#deps.signal?.throwIfAborted();
          await share.reset();
          const { capturedPages } = await share.capture(batch);
          await this.#writeShare(share, admit);
          faultPoint('duringRound');
          onBatch(capturedPages);
        }
        await share.reset();
      }),
    );
  }

  /** Everything that was appended so far is in the repository's storage, and nothing is under way. */
  async written(): Promise<void> {
    await this.#deps.writer.idle();
  }

  /** Encodes what the shares captured in the pause. @param admit see `copyAndWrite` */
  async writeCaptured(admit: boolean, onBatch: (pageCount: number) => void): Promise<void> {
    await allSettledFirstError(
      this.#deps.pool.shares.map(async (share) => {
        await this.#writeShare(share, admit, onBatch);
        await share.reset();
      }),
    );
  }

  async #writeShare(
    share: ShareOperations,
    admit: boolean,
    onBatch?: (pageCount: number) => void,
  ): Promise<void> {
    const { pool } = this.#deps;
    const { pages } = await share.seal();
    for (let from = 0; from < pages.length; from += ENCODE_BATCH_PAGES) {
      this.#deps.signal?.throwIfAborted();
      const batch = pages.subarray(from, from + ENCODE_BATCH_PAGES);
      const to = from + batch.length;
      const bases = this.#basesOf(batch);
      const older = await this.#goBack(bases);
      const { positions } = await share.missing({ from, to, ...bases });
      const provided = await this.#fetch(bases, positions, older);
      const reply = await share.encode({ from, to, ...bases, provided, admit });
      pool.scratch.give(provided);
      await this.#append(reply);
      for (const i of reply.reverted)
        this.#deps.writer.markReverted(batch[i]!, bases.baseRefs[i]!, bases.depths[i]!);
      faultPoint('duringEncode');
      onBatch?.(batch.length);
    }
  }

  #basesOf(pages: Uint32Array): Bases {
    const { map } = this.#deps;
    return {
      baseRefs: Float64Array.from(pages, (page) => map.refOf(page)),
      depths: Uint8Array.from(pages, (page) => map.depthOf(page)),
      whole: new Uint8Array(pages.length),
      older: new Uint8Array(pages.length),
    };
  }

  /**
   * One more delta on a page at the greatest depth would make reading it take more records than the format
   * promises. The page is held against the record at the bottom instead; where there is none that can be
   * read, it is stored whole.
   * @returns the contents of the bottoms, in the order of the positions they are for
   */
  async #goBack({ baseRefs, depths, whole, older }: Bases): Promise<Uint8Array> {
    const { reader, writer } = this.#deps;
    const deep: number[] = [];
    depths.forEach((depth, i) => {
      if (depth < MAX_DELTA_DEPTH) return;
      if (writer.isCommitted(baseRefs[i]!)) deep.push(i);
      else whole[i] = 1;
    });
    const contents = new Uint8Array(deep.length * PAGE_SIZE_BYTES);
    if (deep.length === 0) return contents;
    const bottoms = await reader.readBottoms(
      Float64Array.from(deep, (i) => baseRefs[i]!),
      contents,
    );
    let kept = 0;
    deep.forEach((position, i) => {
      const depth = depths[position]! - bottoms.deltas[i]!;
      // The base of a patched page may lie at the greatest depth itself.
      if (depth >= MAX_DELTA_DEPTH) {
        whole[position] = 1;
        return;
      }
      baseRefs[position] = bottoms.refs[i]!;
      depths[position] = depth;
      older[position] = 1;
      contents.copyWithin(kept * PAGE_SIZE_BYTES, i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES);
      kept++;
    });
    return contents.subarray(0, kept * PAGE_SIZE_BYTES);
  }

  /**
   * Bases from the repository. Bases that are not committed yet cannot be read: their pages are stored whole.
   */
  async #fetch(
    { baseRefs, whole, older }: Bases,
    positions: Uint32Array,
    bottoms: Uint8Array,
  ): Promise<Uint8Array> {
    const { reader, writer, pool } = this.#deps;
    const readable = positions.filter((position) => {
      if (writer.isCommitted(baseRefs[position]!)) return true;
      whole[position] = 1;
      return false;
    });
    const wanted = readable.filter((position) => older[position] === 0);
    const read = pool.scratch.take(wanted.length * PAGE_SIZE_BYTES);
    if (wanted.length > 0)
      await reader.readPagesByRef(
        Float64Array.from(wanted, (position) => baseRefs[position]!),
        read,
      );
    if (bottoms.length === 0) return read;
    const provided = pool.scratch.take(readable.length * PAGE_SIZE_BYTES);
    const from = { read: 0, bottoms: 0 };
    readable.forEach((position, i) => {
      const which = older[position] === 1 ? 'bottoms' : 'read';
      const at = from[which]++ * PAGE_SIZE_BYTES;
      provided.set(
        (which === 'read' ? read : bottoms).subarray(at, at + PAGE_SIZE_BYTES),
        i * PAGE_SIZE_BYTES,
      );
    });
    pool.scratch.give(read);
    return provided;
  }

  async #append(reply: EncodeReply): Promise<void> {
    const { writer } = this.#deps;
    for (const frame of reply.frames) await writer.appendFrame(frame);
    writer.markZero(reply.zeroPages);
    this.totals.unchangedPages += reply.samePageCount;
    this.totals.changedBytes += reply.changedBytes;
  }
}

/**
 * Waits for all before it reports the first failure: nothing may still be using the writer when it is
 * aborted.
 */
async function allSettledFirstError(work: readonly Promise<void>[]): Promise<void> {
  const settled = await Promise.allSettled(work);
  for (const one of settled) if (one.status === 'rejected') throw one.reason;
}
