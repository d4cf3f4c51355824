/** The two scans that Cairn's is held against, in C and in TypeScript (see scan.c). All give (first page, page count) pairs. */

import koffi from 'koffi';

import { buildPeer } from './build.js';

/** @returns number of runs written to `runs` */
export type Scan = (bitmap: Uint32Array, pageCount: number, runs: Uint32Array, repeat: number) => number;

export interface ScanPeers {
  readonly bitsC: Scan;
  readonly wordsC: Scan;
}

export function scanPeers(): ScanPeers {
  const library = koffi.load(buildPeer('scan', ['-O2']));
  const bind = (name: string): Scan => {
    const call = library.func(`uint64_t ${name}(const void *, uint64_t, void *, uint64_t)`) as (
      ...args: Parameters<Scan>
    ) => number | bigint;
    return (...args) => Number(call(...args));
  };
  return { bitsC: bind('scan_bits'), wordsC: bind('scan_words') };
}

export const bitsTs: Scan = (bitmap, pageCount, runs, repeat) => {
  let count = 0;
  for (let turn = 0; turn < repeat; turn++) {
    count = 0;
    let first = 0;
    let open = false;
    for (let page = 0; page < pageCount; page++) {
      if (((bitmap[page >>> 5]! >>> (page & 31)) & 1) !== 0) {
        if (!open) first = page;
        open = true;
      } else if (open) {
        runs[count * 2] = first;
        runs[count * 2 + 1] = page - first;
        count++;
        open = false;
      }
    }
    if (open) {
      runs[count * 2] = first;
      runs[count * 2 + 1] = pageCount - first;
      count++;
    }
  }
  return count;
};

/** JavaScript has no fast 64-bit integers: words of 32 bits. */
function findNext(bitmap: Uint32Array, pageCount: number, from: number, invert: number): number {
  if (from >= pageCount) return pageCount;
  let word = from >>> 5;
  const last = (pageCount - 1) >>> 5;
  let bits = (bitmap[word]! ^ invert) & (-1 << (from & 31));
  while (bits === 0) {
    if (++word > last) return pageCount;
    bits = bitmap[word]! ^ invert;
  }
  const found = word * 32 + (31 - Math.clz32(bits & -bits));
  return Math.min(found, pageCount);
}

export const wordsTs: Scan = (bitmap, pageCount, runs, repeat) => {
  let count = 0;
  for (let turn = 0; turn < repeat; turn++) {
    count = 0;
    let first = findNext(bitmap, pageCount, 0, 0);
    while (first < pageCount) {
      const end = findNext(bitmap, pageCount, first + 1, -1);
      runs[count * 2] = first;
      runs[count * 2 + 1] = end - first;
      count++;
      first = findNext(bitmap, pageCount, end + 1, 0);
    }
  }
  return count;
};
