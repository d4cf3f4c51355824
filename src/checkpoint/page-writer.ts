/**
 * From captured pages to records in the repository: for each share, find out which bases it lacks, fetch those
 * from the repository, have the share encode, append the frames.
 */

import type { EncodeReply, ShareOperations } from '../pool/messages.js';
import { ENCODE_BATCH_PAGES } from '../pool/messages.js';
import type { SharePool } from '../pool/share-pool.js';
import type { ChainReader } from '../repository/chain-reader.js';
import type { CheckpointWriter } from '../repository/checkpoint-writer.js';
import type { PageMap } from '../repository/page-map.js';
import { MAX_DELTA_DEPTH } from '../repository/record-ref.js';
import { PAGE_SIZE_BYTES, type PageRuns } from '../types.js';
import { faultPoint } from './fault-points.js';
import { chunkRuns } from './run-chunks.js';

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
    const parts = pool.split(runs);
    await allSettledFirstError(
      pool.shares.map(async (share, i) => {
        for (const batch of chunkRuns(parts[i]!, ENCODE_BATCH_PAGES)) {
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

  /** Encodes what the shares captured in the pause. */
  async writeCaptured(onBatch: (pageCount: number) => void): Promise<void> {
    await allSettledFirstError(
      this.#deps.pool.shares.map(async (share) => {
        await this.#writeShare(share, true, onBatch);
        await share.reset();
      }),
    );
  }

  async #writeShare(
    share: ShareOperations,
    admit: boolean,
    onBatch?: (pageCount: number) => void,
  ): Promise<void> {
    const { pages } = await share.seal();
    for (let from = 0; from < pages.length; from += ENCODE_BATCH_PAGES) {
      const batch = pages.subarray(from, from + ENCODE_BATCH_PAGES);
      const to = from + batch.length;
      const { baseRefs, whole } = this.#basesOf(batch);
      const { positions } = await share.missing({ from, to, baseRefs, whole });
      const provided = await this.#fetch(baseRefs, whole, positions);
      const reply = await share.encode({ from, to, baseRefs, whole, provided, admit });
      await this.#append(reply);
      faultPoint('duringEncode');
      onBatch?.(batch.length);
    }
  }

  #basesOf(pages: Uint32Array): { baseRefs: Float64Array; whole: Uint8Array } {
    const { map } = this.#deps;
    const baseRefs = new Float64Array(pages.length);
    const whole = new Uint8Array(pages.length);
    pages.forEach((page, i) => {
      baseRefs[i] = map.refOf(page);
      // One more delta on top would make reading the page take more records than the format promises.
      if (map.depthOf(page) >= MAX_DELTA_DEPTH) whole[i] = 1;
    });
    return { baseRefs, whole };
  }

  /** Bases from the repository. Those that are not committed yet cannot be read: their pages are stored whole. */
  async #fetch(baseRefs: Float64Array, whole: Uint8Array, positions: Uint32Array): Promise<Uint8Array> {
    const { reader, writer } = this.#deps;
    const readable = positions.filter((position) => {
      if (writer.isCommitted(baseRefs[position]!)) return true;
      whole[position] = 1;
      return false;
    });
    const refs = Float64Array.from(readable, (position) => baseRefs[position]!);
    const provided = new Uint8Array(readable.length * PAGE_SIZE_BYTES);
    if (refs.length > 0) await reader.readPagesByRef(refs, provided);
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

/** Waits for all before it reports the first failure: nothing may still be using the writer when it is aborted. */
async function allSettledFirstError(work: readonly Promise<void>[]): Promise<void> {
  const settled = await Promise.allSettled(work);
  for (const one of settled) if (one.status === 'rejected') throw one.reason;
}
