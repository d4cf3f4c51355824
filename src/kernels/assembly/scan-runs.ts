/**
 * Dirty bitmap to page runs.
 *
 * The scan looks for edges, not for bits: in `w ^ (w << 1 | last bit of the word before)` a bit is set where
 * a run starts and where it ends, so a run of any length costs two steps, and words of all zeros inside no
 * run and of all ones inside a run are both simply 0. Edges are written as they come, a run's start and its
 * end in turns, and turned into (start, count) when all are known; so a run may go on from one call into the
 * next.
 */

/** Bytes that the loops look at in one step: 16 words, eight vectors. */
const STEP_BYTES: usize = 128;

/**
 * Writes the positions of all bits in `edges`; returns how many there are. The first four are written without
 * asking whether they exist: for the usual one or two runs a word, this saves a mispredicted branch.
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

/** Edges of the word at `p`; the word before it is part of the bitmap too. */
// @ts-ignore: decorator
@inline
function edgesOf(p: usize): u64 {
  const word = load<u64>(p);
  return word ^ ((word << 1) | (load<u64>(p - 8) >> 63));
}

/** Bit 0 and bit 1 of the result: whether the words at `p` and `p + 8` have edges. */
// @ts-ignore: decorator
@inline
function hasEdges(p: usize): i32 {
  const words = v128.load(p);
  const edges = v128.xor(v128.xor(words, i64x2.shl(words, 1)), i64x2.shr_u(v128.load(p - 8), 63));
  return i64x2.bitmask(i64x2.ne(edges, i64x2.splat(0)));
}

// @ts-ignore: decorator
@inline
function isZeroStep(p: usize): bool {
  return !v128.any_true(
    v128.or(
      v128.or(v128.or(v128.load(p), v128.load(p, 16)), v128.or(v128.load(p, 32), v128.load(p, 48))),
      v128.or(v128.or(v128.load(p, 64), v128.load(p, 80)), v128.or(v128.load(p, 96), v128.load(p, 112))),
    ),
  );
}

// @ts-ignore: decorator
@inline
function isOnesStep(p: usize): bool {
  const all = v128.and(
    v128.and(v128.and(v128.load(p), v128.load(p, 16)), v128.and(v128.load(p, 32), v128.load(p, 48))),
    v128.and(v128.and(v128.load(p, 64), v128.load(p, 80)), v128.and(v128.load(p, 96), v128.load(p, 112))),
  );
  return !v128.any_true(v128.not(all));
}

/**
 * See `Kernels.scanEdges`. A list of the steps with edges, made first and without branches, was tried to save
 * the mispredicted end of each skip: it reads an empty bitmap a quarter slower and gains nothing on scattered
 * ones.
 */
export function scanEdges(bitmap: usize, wordCount: u32, firstBit: u32, out: usize): u32 {
  const end = bitmap + (<usize>wordCount << 3);
  let p = bitmap;
  let at = out;
  while (p < end) {
    // Whether a run is open here tells which of the two kinds of long stretches may follow.
    if (<i64>load<u64>(p - 8) >= 0) {
      while (p < end && isZeroStep(p)) p += STEP_BYTES;
    } else {
      while (p < end && isOnesStep(p)) p += STEP_BYTES;
    }
    if (p >= end) break;
    let pending =
      hasEdges(p) |
      (hasEdges(p + 16) << 2) |
      (hasEdges(p + 32) << 4) |
      (hasEdges(p + 48) << 6) |
      (hasEdges(p + 64) << 8) |
      (hasEdges(p + 80) << 10) |
      (hasEdges(p + 96) << 12) |
      (hasEdges(p + 112) << 14);
    const bit = firstBit + (<u32>(p - bitmap) << 3);
    while (pending != 0) {
      const k = <u32>ctz(pending);
      pending &= pending - 1;
      at += <usize>putEdges(edgesOf(p + (<usize>k << 3)), bit + (k << 6), at) << 2;
    }
    p += STEP_BYTES;
  }
  return <u32>((at - out) >> 2);
}

/** See `Kernels.edgesToRuns`. */
export function edgesToRuns(edges: usize, runCount: u32): void {
  let p = edges;
  let left = runCount;
  for (; left >= 2; left -= 2) {
    const pairs = v128.load(p);
    // Each start moved into its end's lane, 0 in the starts' own lanes.
    v128.store(p, i32x4.sub(pairs, i64x2.shl(pairs, 32)));
    p += 16;
  }
  if (left != 0) store<u32>(p, load<u32>(p, 4) - load<u32>(p), 4);
}
