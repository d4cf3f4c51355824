/**
 * A trace through the product's own encoder, as if each epoch were a checkpoint: the share of a worker with its cache of
 * previous versions, frames, and references as a checkpoint writer gives them.
 */

import { performance } from 'node:perf_hooks';

import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { CODEC_RUNS } from '../../src/kernels/codec-ids.js';
import { ENCODE_BATCH_PAGES } from '../../src/pool/messages.js';
import { PageShare } from '../../src/pool/page-share.js';
import { makeRef, MAX_DELTA_DEPTH } from '../../src/format/record-ref.js';
import type { TraceEpoch } from '../../src/study/trace/trace-reader.js';
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
  const reader = { moduleUrl: new URL('./replay-reader.js', import.meta.url).href, options: null };
  const share = await PageShare.open(reader, { cacheBytes: 1 << 30, level });
  const records = new Map<number, { readonly ref: number; readonly depth: number }>();
  const bottoms = new Map<
    number,
    { readonly ref: number; readonly depth: number; readonly content: Uint8Array }
  >();
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
      const indexOf = new Map([...pages].map((page, i) => [page, i]));
      pages.forEach((page, i) => {
        const at = i * PAGE_SIZE_BYTES;
        if (!records.has(page) && !bottoms.has(page))
          bottoms.set(page, { ...known(page), content: before.slice(at, at + PAGE_SIZE_BYTES) });
      });
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
        const depths = Uint8Array.from(batch, (page) => known(page).depth);
        const whole = new Uint8Array(batch.length);
        const older = new Uint8Array(batch.length);
        batch.forEach((page, i) => {
          if (depths[i]! < MAX_DELTA_DEPTH) return;
          const bottom = bottoms.get(page);
          if (bottom === undefined || bottom.depth >= MAX_DELTA_DEPTH) whole[i] = 1;
          else {
            older[i] = 1;
            depths[i] = bottom.depth;
            baseRefs[i] = bottom.ref;
          }
        });
        const { positions } = share.missing({ from, to, baseRefs, depths, whole, older });
        const provided = new Uint8Array(positions.length * PAGE_SIZE_BYTES);
        positions.forEach((position, i) => {
          const at = (from + position) * PAGE_SIZE_BYTES;
          const content =
            older[position] === 1
              ? bottoms.get(batch[position]!)!.content
              : before.subarray(at, at + PAGE_SIZE_BYTES);
          provided.set(content, i * PAGE_SIZE_BYTES);
        });
        const started = performance.now();
        const { frames, reverted } = share.encode({
          from,
          to,
          baseRefs,
          depths,
          whole,
          older,
          provided,
          admit: true,
        });
        encodeMs += performance.now() - started;
        for (const i of reverted) records.set(batch[i]!, { ref: baseRefs[i]!, depth: depths[i]! });
        for (const frame of frames) {
          storedBytes += frame.bytes.length;
          frame.pages.forEach((page, i) => {
            const known = { ref: makeRef(pack, frameNumber, i), depth: frame.depths[i]! };
            records.set(page, known);
            if (frame.codecs[i] === CODEC_RUNS) return;
            const at = indexOf.get(page)! * PAGE_SIZE_BYTES;
            bottoms.set(page, { ...known, content: after.slice(at, at + PAGE_SIZE_BYTES) });
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
