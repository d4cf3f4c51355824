/**
 * Enters the records of a new frame in the map of pages, and holds them to the law of chains: a base lies
 * before its record.
 */

import { CODEC_RUNS } from '../../kernels/codec-ids.js';
import type { EncodedFrame } from '../../format/frame.js';
import { frameKey, frameKeyOfRef, makeRef, MAX_DELTA_DEPTH, ZERO_REF } from '../../format/record-ref.js';
import type { PageMap } from '../read/page-map.js';

/**
 * A later record of the same page counts.
 * @throws RangeError for a record whose base is not what the map holds for its page, or that would be too
 * deep; then some are entered
 */
export function enterRecords(map: PageMap, frame: EncodedFrame, packSeq: number, number: number): void {
  const ownFrame = frameKey(packSeq, number);
  for (const source of frame.sources) {
    if (frameKeyOfRef(source) >= ownFrame) throw new RangeError('a source does not lie before the frame');
  }
  for (let i = 0; i < frame.pages.length; i++) {
    const page = frame.pages[i]!;
    const depth = frame.depths[i]!;
    const base = frame.codecs[i] === CODEC_RUNS ? frame.baseRefs[i]! : ZERO_REF;
    if (base !== ZERO_REF) {
      // Or the record at the bottom of the present one, which the encoder goes back to at the greatest depth.
      const isPresent = base === map.refOf(page) && depth === map.depthOf(page) + 1;
      const isOlder = base < map.refOf(page) && map.depthOf(page) === MAX_DELTA_DEPTH;
      if (!(isPresent || isOlder) || frameKeyOfRef(base) >= ownFrame) {
        throw new RangeError(`page ${page}: the record's base is not the page's present record`);
      }
    }
    if (depth > MAX_DELTA_DEPTH) throw new RangeError(`page ${page}: ${depth} deltas on top of each other`);
    map.set(page, makeRef(packSeq, number, i), depth);
  }
}
