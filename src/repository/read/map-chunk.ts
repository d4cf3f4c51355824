/**
 * A stretch of 1024 pages of a page map, in the form that takes least memory. Pages that were written
 * together have references that count up, so most stretches are a few runs:
 *
 *     nothing     all pages zero
 *     runs        two numbers a run: (depth, first page within the stretch), reference of the first page
 *     plain       reference and depth of each page, where runs would take more
 *
 * A chunk that is committed is never changed, so maps share it.
 */

import { ZERO_REF, type RecordRef } from '../../format/record-ref.js';

export const CHUNK_PAGES = 1024;

/** Two numbers a run, as drawn above. */
interface RunsChunk {
  readonly runs: Float64Array;
}

/** Reference and depth of each page. */
export interface PlainChunk {
  readonly runs?: undefined;
  readonly refs: Float64Array;
  readonly depths: Uint8Array;
}

/** Undefined where all pages are zero. */
export type MapChunk = RunsChunk | PlainChunk | undefined;

/** Called for pages that have a record: their references count up from `ref`, and all lie at one depth. */
export type VisitRun = (firstPage: number, pageCount: number, ref: RecordRef, depth: number) => void;

/** A run takes 16 bytes, a page of a plain chunk 9. */
const MOST_RUNS = Math.floor((CHUNK_PAGES * 9) / 16);

/** @param refs and `depths` of at most 1024 pages; not kept when the chunk comes out in another form */
export function chunkOf(refs: Float64Array, depths: Uint8Array): MapChunk {
  const runs: number[] = [];
  for (let page = 0; page < refs.length; page++) {
    const ref = refs[page]!;
    const isNext =
      page > 0 &&
      depths[page] === depths[page - 1] &&
      (ref === ZERO_REF
        ? refs[page - 1] === ZERO_REF
        : refs[page - 1] !== ZERO_REF && ref === refs[page - 1]! + 1);
    if (isNext) continue;
    if (runs.length === MOST_RUNS * 2) return plainOf(refs, depths);
    runs.push(depths[page]! * CHUNK_PAGES + page, ref);
  }
  // What is behind the end of the memory is zero as well.
  if (refs.length < CHUNK_PAGES && runs.at(-1) !== ZERO_REF) runs.push(refs.length, ZERO_REF);
  return runs.length === 2 && runs[1] === ZERO_REF ? undefined : { runs: Float64Array.from(runs) };
}

/** A copy that may be changed. */
export function expanded(chunk: MapChunk): PlainChunk {
  if (chunk !== undefined && chunk.runs === undefined) return plainOf(chunk.refs, chunk.depths);
  const plain = { refs: new Float64Array(CHUNK_PAGES), depths: new Uint8Array(CHUNK_PAGES) };
  visitRuns(chunk, 0, (first, count, ref, depth) => {
    for (let i = 0; i < count; i++) plain.refs[first + i] = ref + i;
    plain.depths.fill(depth, first, first + count);
  });
  return plain;
}

export function refIn(chunk: MapChunk, page: number): RecordRef {
  if (chunk === undefined) return ZERO_REF;
  const { runs } = chunk;
  if (runs === undefined) return chunk.refs[page]!;
  const at = runOf(runs, page);
  const ref = runs[at + 1]!;
  return ref === ZERO_REF ? ZERO_REF : ref + page - (runs[at]! & (CHUNK_PAGES - 1));
}

export function depthIn(chunk: MapChunk, page: number): number {
  if (chunk === undefined) return 0;
  const { runs } = chunk;
  return runs === undefined ? chunk.depths[page]! : Math.floor(runs[runOf(runs, page)]! / CHUNK_PAGES);
}

/** @param firstPage of the chunk */
export function visitRuns(chunk: MapChunk, firstPage: number, visit: VisitRun): void {
  if (chunk === undefined) return;
  const { runs } = chunk;
  if (runs !== undefined) {
    for (let at = 0; at < runs.length; at += 2) {
      const first = runs[at]! & (CHUNK_PAGES - 1);
      const end = at + 2 < runs.length ? runs[at + 2]! & (CHUNK_PAGES - 1) : CHUNK_PAGES;
      const depth = Math.floor(runs[at]! / CHUNK_PAGES);
      if (runs[at + 1] !== ZERO_REF) visit(firstPage + first, end - first, runs[at + 1]!, depth);
    }
    return;
  }
  const { refs, depths } = chunk;
  for (let page = 0; page < CHUNK_PAGES; page++)
    if (refs[page] !== ZERO_REF) visit(firstPage + page, 1, refs[page]!, depths[page]!);
}

function plainOf(refs: Float64Array, depths: Uint8Array): PlainChunk {
  const plain = { refs: new Float64Array(CHUNK_PAGES), depths: new Uint8Array(CHUNK_PAGES) };
  plain.refs.set(refs);
  plain.depths.set(depths);
  return plain;
}

/** Where the run of the page is. */
function runOf(runs: Float64Array, page: number): number {
  let [from, to] = [0, runs.length >>> 1];
  while (to - from > 1) {
    const middle = (from + to) >>> 1;
    if ((runs[middle * 2]! & (CHUNK_PAGES - 1)) <= page) from = middle;
    else to = middle;
  }
  return from * 2;
}
