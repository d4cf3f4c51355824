/**
 * Dirty bitmap to page runs.
 *
 * The scan looks for edges, not for bits: in `w ^ (w << 1 | last bit of the word before)` a bit is set where a run
 * starts and where it ends, so a run of any length costs two steps, and words of all zeros inside no run and of all
 * ones inside a run are both simply 0. Edges are written to `out` as they come, (start, end) for a run, and turned into
 * (start, count) at the end. The number of edges written is odd exactly while a run is open.
 */

/** Edges that eight words can have, and what `putEdges` may write past the last one. */
const BLOCK_EDGES: u32 = 8 * 64;
const PUT_OVERSHOOT: u32 = 3;

/**
 * Writes the positions of all bits in `edges`; returns how many there are. The first four are written without asking
 * whether they exist: for the usual one or two runs a word, this saves a mispredicted branch.
 */
// @ts-ignore: decorator
@inline
function putEdges(edges: u64, firstBit: u32, at: usize): u32 {
  const count = <u32>popcnt(edges);
  let k: u32 = 0;
  do {
    store<u32>(at, firstBit + <u32>ctz(edges));
    edges &= edges - 1;
    store<u32>(at, firstBit + <u32>ctz(edges), 4);
    edges &= edges - 1;
    store<u32>(at, firstBit + <u32>ctz(edges), 8);
    edges &= edges - 1;
    store<u32>(at, firstBit + <u32>ctz(edges), 12);
    edges &= edges - 1;
    at += 16;
    k += 4;
  } while (k < count);
  return count;
}

/** As `putEdges`, but stops at `room` and writes nothing beyond. */
function putEdgesExactly(edges: u64, firstBit: u32, at: usize, room: u32): u32 {
  let count: u32 = 0;
  while (edges != 0 && count < room) {
    store<u32>(at + (<usize>count << 2), firstBit + <u32>ctz(edges));
    edges &= edges - 1;
    count++;
  }
  return count;
}

/** Edges of the word at `p`; the word before it is part of the bitmap too. */
// @ts-ignore: decorator
@inline
function edgesOf(p: usize): u64 {
  const word = load<u64>(p);
  return word ^ ((word << 1) | (load<u64>(p - 8) >> 63));
}

// @ts-ignore: decorator
@inline
function edgePair(p: usize): v128 {
  const words = v128.load(p);
  return v128.xor(v128.xor(words, i64x2.shl(words, 1)), i64x2.shr_u(v128.load(p - 8), 63));
}

// @ts-ignore: decorator
@inline
function isZeroBlock(p: usize): bool {
  return !v128.any_true(
    v128.or(v128.or(v128.load(p), v128.load(p, 16)), v128.or(v128.load(p, 32), v128.load(p, 48))),
  );
}

// @ts-ignore: decorator
@inline
function isOnesBlock(p: usize): bool {
  return i8x16.all_true(
    i8x16.eq(
      v128.and(v128.and(v128.load(p), v128.load(p, 16)), v128.and(v128.load(p, 32), v128.load(p, 48))),
      i8x16.splat(-1),
    ),
  );
}

/** (start, end) pairs of bits to (first, count) pairs of pages, for a bitmap whose bit 0 is `firstPage`. */
function edgesToRuns(out: usize, runCount: u32, firstPage: u32): void {
  const first = i64x2.splat(<i64>firstPage);
  let p = out;
  let left = runCount;
  for (; left >= 2; left -= 2) {
    const pairs = v128.load(p);
    // Each start moved into its end's lane, 0 in the starts' own lanes; then `firstPage` on the starts alone.
    v128.store(p, i32x4.add(i32x4.sub(pairs, i64x2.shl(pairs, 32)), first));
    p += 16;
  }
  if (left != 0) {
    const start = load<u32>(p);
    store<u32>(p, start + firstPage);
    store<u32>(p, load<u32>(p, 4) - start, 4);
  }
}

/** See `Kernels.scanRuns`. */
export function scanRuns(
  bitmap: usize,
  wordCount: u32,
  startBit: u32,
  out: usize,
  maxRuns: u32,
  firstPage: u32,
): u32 {
  let word = startBit >> 6;
  if (word >= wordCount || maxRuns == 0) return 0;
  const limit = maxRuns << 1;

  const first = load<u64>(bitmap + (<usize>word << 3)) & (u64.MAX_VALUE << (startBit & 63));
  let n = putEdgesExactly(first ^ (first << 1), word << 6, out, limit);
  word++;

  while (n < limit && wordCount - word >= 8) {
    let p = bitmap + (<usize>word << 3);
    if ((n & 1) == 0) {
      while (wordCount - word >= 8 && isZeroBlock(p)) {
        p += 64;
        word += 8;
      }
    } else {
      while (wordCount - word >= 8 && isOnesBlock(p)) {
        p += 64;
        word += 8;
      }
    }
    if (wordCount - word < 8) break;
    const zero = i64x2.splat(0);
    let pending =
      i64x2.bitmask(i64x2.ne(edgePair(p), zero)) |
        (i64x2.bitmask(i64x2.ne(edgePair(p + 16), zero)) << 2) |
        (i64x2.bitmask(i64x2.ne(edgePair(p + 32), zero)) << 4) |
        (i64x2.bitmask(i64x2.ne(edgePair(p + 48), zero)) << 6);
    const roomy = limit - n >= BLOCK_EDGES + PUT_OVERSHOOT;
    while (pending != 0) {
      const k = <u32>ctz(pending);
      pending &= pending - 1;
      const edges = edgesOf(p + (<usize>k << 3));
      const at = out + (<usize>n << 2);
      if (roomy) n += putEdges(edges, (word + k) << 6, at);
      else n += putEdgesExactly(edges, (word + k) << 6, at, limit - n);
    }
    word += 8;
  }

  for (; n < limit && word < wordCount; word++) {
    n += putEdgesExactly(edgesOf(bitmap + (<usize>word << 3)), word << 6, out + (<usize>n << 2), limit - n);
  }
  // A run that reaches the end of the bitmap. The limit is even, so there is room for its end.
  if ((n & 1) != 0) {
    store<u32>(out + (<usize>n << 2), wordCount << 6);
    n++;
  }
  edgesToRuns(out, n >> 1, firstPage);
  return n >> 1;
}
