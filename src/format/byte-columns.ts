/**
 * Numbers laid out for zstd: differences to the number before, split into planes of equal significance, so
 * that the many zero bytes come together (docs/format.md, columns).
 *
 *     numbers  a0 a1 a2     bytes  a0.0 a1.0 a2.0 | a0.1 a1.1 a2.1 | a0.2 ...     x.0: least significant byte
 */

/** Writes one plane a byte of `width`; numbers below 2^32. @returns the offset behind */
export function putPlanes(out: Uint8Array, at: number, numbers: ArrayLike<number>, width: 1 | 2 | 4): number {
  const count = numbers.length;
  for (let plane = 0; plane < width; plane++) {
    const shift = plane * 8;
    for (let i = 0; i < count; i++) out[at + i] = numbers[i]! >>> shift;
    at += count;
  }
  return at;
}

/** Reads `count` numbers of `width` planes; the caller has checked that they are there. */
export function takePlanes(bytes: Uint8Array, at: number, count: number, width: 1 | 2 | 4): Uint32Array {
  const numbers = new Uint32Array(count);
  for (let plane = 0; plane < width; plane++) {
    const shift = plane * 8;
    for (let i = 0; i < count; i++) numbers[i]! |= bytes[at + i]! << shift;
    at += count;
  }
  return numbers;
}

/** A number out of four planes of `count` bytes each, as a signed one. */
function wordAt(bytes: Uint8Array, at: number, count: number): number {
  return (
    bytes[at]! | (bytes[at + count]! << 8) | (bytes[at + 2 * count]! << 16) | (bytes[at + 3 * count]! << 24)
  );
}

/** Differences of u32 numbers modulo 2^32, the first to 0, as four planes. @returns the offset behind */
export function putDeltas32(out: Uint8Array, at: number, numbers: Uint32Array): number {
  const deltas = new Uint32Array(numbers.length);
  for (let i = 0, before = 0; i < numbers.length; before = numbers[i++]!) deltas[i] = numbers[i]! - before;
  return putPlanes(out, at, deltas, 4);
}

export function takeDeltas32(bytes: Uint8Array, at: number, count: number): Uint32Array {
  const numbers = new Uint32Array(count);
  for (let i = 0, sum = 0; i < count; i++) {
    sum = (sum + wordAt(bytes, at + i, count)) | 0;
    numbers[i] = sum;
  }
  return numbers;
}

const TWO_32 = 2 ** 32;

/**
 * Differences of numbers below 2^53 modulo 2^64, the first to 0, as eight planes.
 * @returns the offset behind
 */
export function putDeltas64(out: Uint8Array, at: number, numbers: Float64Array): number {
  const lows = new Uint32Array(numbers.length);
  const highs = new Uint32Array(numbers.length);
  let lowBefore = 0;
  let highBefore = 0;
  for (let i = 0; i < numbers.length; i++) {
    const low = numbers[i]! % TWO_32;
    const high = (numbers[i]! - low) / TWO_32;
    lows[i] = low - lowBefore;
    highs[i] = high - highBefore - (low < lowBefore ? 1 : 0);
    lowBefore = low;
    highBefore = high;
  }
  return putPlanes(out, putPlanes(out, at, lows, 4), highs, 4);
}

/** The inverse. What is 2^53 or more comes out inexact, and is told by its size: the caller checks. */
export function takeDeltas64(bytes: Uint8Array, at: number, count: number): Float64Array {
  const numbers = new Float64Array(count);
  const highAt = at + count * 4;
  let low = 0;
  let high = 0;
  // One pass over all planes: the columns of an index have millions of numbers.
  for (let i = 0; i < count; i++) {
    low += wordAt(bytes, at + i, count) >>> 0;
    high += wordAt(bytes, highAt + i, count) >>> 0;
    if (low >= TWO_32) {
      low -= TWO_32;
      high += 1;
    }
    if (high >= TWO_32) high -= TWO_32;
    numbers[i] = high * TWO_32 + low;
  }
  return numbers;
}
