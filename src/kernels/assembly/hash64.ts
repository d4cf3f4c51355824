/** XXH64, from its public specification (xxHash, doc/xxhash_spec.md). */

const PRIME_1: u64 = 0x9e3779b185ebca87;
const PRIME_2: u64 = 0xc2b2ae3d27d4eb4f;
const PRIME_3: u64 = 0x165667b19e3779f9;
const PRIME_4: u64 = 0x85ebca77c2b2ae63;
const PRIME_5: u64 = 0x27d4eb2f165667c5;

// @ts-ignore: decorator
@inline
function round(accumulator: u64, lane: u64): u64 {
  return rotl(accumulator + lane * PRIME_2, 31) * PRIME_1;
}

// @ts-ignore: decorator
@inline
function mergeAccumulator(hash: u64, accumulator: u64): u64 {
  return (hash ^ round(0, accumulator)) * PRIME_1 + PRIME_4;
}

export function hash64(ptr: usize, length: u32, seed: u64): u64 {
  let p = ptr;
  let left = length;
  let hash: u64 = seed + PRIME_5;
  if (left >= 32) {
    let a: u64 = seed + PRIME_1 + PRIME_2;
    let b: u64 = seed + PRIME_2;
    let c: u64 = seed;
    let d: u64 = seed - PRIME_1;
    do {
      a = round(a, load<u64>(p));
      b = round(b, load<u64>(p, 8));
      c = round(c, load<u64>(p, 16));
      d = round(d, load<u64>(p, 24));
      p += 32;
      left -= 32;
    } while (left >= 32);
    hash = rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18);
    hash = mergeAccumulator(hash, a);
    hash = mergeAccumulator(hash, b);
    hash = mergeAccumulator(hash, c);
    hash = mergeAccumulator(hash, d);
  }
  hash += length;
  for (; left >= 8; left -= 8) {
    hash = rotl(hash ^ round(0, load<u64>(p)), 27) * PRIME_1 + PRIME_4;
    p += 8;
  }
  if (left >= 4) {
    hash = rotl(hash ^ (<u64>load<u32>(p) * PRIME_1), 23) * PRIME_2 + PRIME_3;
    p += 4;
    left -= 4;
  }
  for (; left > 0; left--) {
    hash = rotl(hash ^ (<u64>load<u8>(p) * PRIME_5), 11) * PRIME_1;
    p++;
  }
  hash = (hash ^ (hash >> 33)) * PRIME_2;
  hash = (hash ^ (hash >> 29)) * PRIME_3;
  return hash ^ (hash >> 32);
}
