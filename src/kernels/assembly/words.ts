/** Whole-bitmap operations on 64-bit words. */

/** Number of set bits; below 2^32, since a bitmap has fewer bits than that. */
export function popcount(bitmap: usize, wordCount: u32): u32 {
  let a: u64 = 0;
  let b: u64 = 0;
  let c: u64 = 0;
  let d: u64 = 0;
  let p = bitmap;
  let left = wordCount;
  // Four sums: one chain of additions would be the limit, not the loads.
  for (; left >= 4; left -= 4) {
    a += popcnt(load<u64>(p));
    b += popcnt(load<u64>(p, 8));
    c += popcnt(load<u64>(p, 16));
    d += popcnt(load<u64>(p, 24));
    p += 32;
  }
  for (; left > 0; left--) {
    a += popcnt(load<u64>(p));
    p += 8;
  }
  return <u32>(a + b + c + d);
}

/** dst |= src. */
export function orInto(dst: usize, src: usize, wordCount: u32): void {
  let left = wordCount;
  for (; left >= 8; left -= 8) {
    v128.store(dst, v128.or(v128.load(dst), v128.load(src)));
    v128.store(dst, v128.or(v128.load(dst, 16), v128.load(src, 16)), 16);
    v128.store(dst, v128.or(v128.load(dst, 32), v128.load(src, 32)), 32);
    v128.store(dst, v128.or(v128.load(dst, 48), v128.load(src, 48)), 48);
    dst += 64;
    src += 64;
  }
  for (; left > 0; left--) {
    store<u64>(dst, load<u64>(dst) | load<u64>(src));
    dst += 8;
    src += 8;
  }
}

/** dst &= ~src. */
export function andNot(dst: usize, src: usize, wordCount: u32): void {
  let left = wordCount;
  for (; left >= 8; left -= 8) {
    v128.store(dst, v128.andnot(v128.load(dst), v128.load(src)));
    v128.store(dst, v128.andnot(v128.load(dst, 16), v128.load(src, 16)), 16);
    v128.store(dst, v128.andnot(v128.load(dst, 32), v128.load(src, 32)), 32);
    v128.store(dst, v128.andnot(v128.load(dst, 48), v128.load(src, 48)), 48);
    dst += 64;
    src += 64;
  }
  for (; left > 0; left--) {
    store<u64>(dst, load<u64>(dst) & ~load<u64>(src));
    dst += 8;
    src += 8;
  }
}
