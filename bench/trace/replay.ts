/**
 * A trace through the product's own encoder, as if each epoch were a checkpoint: the share of a worker with its cache of
 * previous versions, frames, and references as a checkpoint writer gives them.
 */

import { performance } from 'node:perf_hooks';

import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { CODEC_RUNS } from '../../src/codec/codec-ids.js';
import { ENCODE_BATCH_PAGES } from '../../src/pool/messages.js';
import { PageShare } from '../../src/pool/page-share.js';
import { makeRef, MAX_DELTA_DEPTH } from '../../src/repository/record-ref.js';
import type { TraceEpoch } from '../../src/trace/trace-reader.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { holdPages } from './replay-reader.js';

export interface ReplayedEpoch {
  /** All frames, headers included. */
  readonly storedBytes: number;
  /** From captured pages to frames. */
  readonly encodeMs: number;
}

/** Records a frame of a base has, about: what the bases of pages not seen before are addressed by. */
const BASE_RECORDS_PER_FRAME = 32;
const BASE_PACK = 1;

export async function* replay(epochs: readonly TraceEpoch[], level: number): AsyncGenerator<ReplayedEpoch> {
  const share = await PageShare.open({
    reader: { moduleUrl: new URL('./replay-reader.js', import.meta.url).href, options: null },
    cacheBytes: 1 << 30,
    level,
  });
  const records = new Map<number, { readonly ref: number; readonly depth: number }>();
  let pack = BASE_PACK;
  try {
    for (const { contentPages: pages, before, after } of epochs) {
      pack++;
      const bitmap = new DirtyBitmap(Math.ceil((pages.at(-1)! + 1) / 64) * 64);
      for (const page of pages) bitmap.set(page);
      // Both versions lie in memory already, as they do in a checkpoint.
      const known = (page: number): { readonly ref: number; readonly depth: number } =>
        records.get(page) ?? {
          ref: makeRef(BASE_PACK, Math.floor(page / BASE_RECORDS_PER_FRAME), page % BASE_RECORDS_PER_FRAME),
          depth: 0,
        };
      holdPages(pages, after);
      share.capture(bitmap.toRuns());
      share.seal();
      let storedBytes = 0;
      let encodeMs = 0;
      let frameNumber = 0;
      for (let from = 0; from < pages.length; from += ENCODE_BATCH_PAGES) {
        const batch = pages.subarray(from, from + ENCODE_BATCH_PAGES);
        const to = from + batch.length;
        const baseRefs = Float64Array.from(batch, (page) => known(page).ref);
        const whole = Uint8Array.from(batch, (page) => (known(page).depth >= MAX_DELTA_DEPTH ? 1 : 0));
        const { positions } = share.missing({ from, to, baseRefs, whole });
        const provided = new Uint8Array(positions.length * PAGE_SIZE_BYTES);
        positions.forEach((position, i) => {
          const at = (from + position) * PAGE_SIZE_BYTES;
          provided.set(before.subarray(at, at + PAGE_SIZE_BYTES), i * PAGE_SIZE_BYTES);
        });
        const started = performance.now();
        const { frames } = share.encode({ from, to, baseRefs, whole, provided, admit: true });
        encodeMs += performance.now() - started;
        for (const frame of frames) {
          storedBytes += frame.bytes.length;
          frame.pages.forEach((page, i) => {
            const depth = frame.codecs[i] === CODEC_RUNS ? known(page).depth + 1 : 0;
            records.set(page, { ref: makeRef(pack, frameNumber, i), depth });
          });
          frameNumber++;
        }
      }
      share.reset();
      yield { storedBytes, encodeMs };
    }
  } finally {
    share.close();
  }
}
