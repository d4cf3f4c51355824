/** `findAnchors` in plain TypeScript, a position at a time. */

import { PAGE_SIZE_BYTES } from '../types.js';
import { ANCHOR_SPAN_BYTES } from './kernels.js';

const MIX_A = 0x9e3779b1;
const MIX_B = 0x85ebca6b;
/** The top 7 bits of the hash are zero at an anchor: one position in 128. */
const ANCHOR_SHIFT = 25;

/** @param out u32 for each position that may be an anchor @returns how many there are */
export function scalarFindAnchors(memory: Uint8Array, page: number, out: Uint32Array): number {
  const view = new DataView(memory.buffer, page, PAGE_SIZE_BYTES);
  let count = 0;
  for (let at = 0; at < PAGE_SIZE_BYTES - ANCHOR_SPAN_BYTES; at++) {
    const word = view.getUint32(at, true);
    const next = view.getUint32(at + 4, true);
    if (word === next || Math.imul(word ^ Math.imul(next, MIX_B), MIX_A) >>> ANCHOR_SHIFT !== 0) continue;
    let key = 0;
    for (let i = 0; i < ANCHOR_SPAN_BYTES; i += 4)
      key = Math.imul((key << 13) ^ (key >>> 19) ^ view.getUint32(at + i, true), MIX_A);
    out[count++] = (key ^ (key >>> 15)) | 1;
  }
  return count;
}
