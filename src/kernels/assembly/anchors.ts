/**
 * Anchors of a page's content: places that the content itself chooses, so that equal content has the same
 * ones wherever it lies.
 *
 * Nearly all positions are no anchors. They are tested sixteen at a time: four vectors of four words, a byte
 * apart.
 */
import { PAGE_SIZE } from './constants';

const MIX_A: u32 = 0x9e3779b1;
const MIX_B: u32 = 0x85ebca6b;
/** The mask lets one position in 128 pass. */
const ANCHOR_MASK: u32 = 0xfe000000;
/** Bytes that an anchor stands for. */
const SPAN: u32 = 32;

// @ts-ignore: decorator
@inline
function candidates(at: usize): u32 {
  const mixed = i32x4.mul(
    v128.xor(v128.load(at), i32x4.mul(v128.load(at, 4), i32x4.splat(MIX_B))),
    i32x4.splat(MIX_A),
  );
  return <u32>i32x4.bitmask(i32x4.eq(v128.and(mixed, i32x4.splat(ANCHOR_MASK)), i32x4.splat(0)));
}

/** Puts the mask of four words that lie four bytes apart into every fourth bit. */
// @ts-ignore: decorator
@inline
function spread(mask: u32): u32 {
  return (mask & 1) | ((mask & 2) << 3) | ((mask & 4) << 6) | ((mask & 8) << 9);
}

/** Writes a key for each anchor of the page to `out`, u32, never 0. @returns how many */
export function findAnchors(page: usize, out: usize): u32 {
  let count: u32 = 0;
  for (let o: u32 = 0; o < PAGE_SIZE - SPAN; o += 16) {
    const at = page + <usize>o;
    const a = candidates(at);
    const b = candidates(at + 1);
    const c = candidates(at + 2);
    const d = candidates(at + 3);
    if ((a | b | c | d) == 0) continue;
    let places = spread(a) | (spread(b) << 1) | (spread(c) << 2) | (spread(d) << 3);
    for (; places != 0; places &= places - 1) {
      const from = at + <usize>ctz(places);
      // What repeats a word, above all zeroes, says nothing.
      if (load<u32>(from) == load<u32>(from, 4)) continue;
      let key: u32 = 0;
      for (let i: usize = 0; i < <usize>SPAN; i += 4) key = (rotl<u32>(key, 13) ^ load<u32>(from + i)) * MIX_A;
      store<u32>(out + (<usize>count << 2), (key ^ (key >> 15)) | 1);
      count++;
    }
  }
  return count;
}
