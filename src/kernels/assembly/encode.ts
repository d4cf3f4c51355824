/**
 * Page encoder: a batch of pages against their bases. Format: docs/format.md, page records.
 *
 * Differences are found 64 bytes at a time as a 64-bit mask, short gaps in it are closed, and runs are taken
 * off from the low end with carry arithmetic: m + (lowest bit of m) ends the lowest run of ones with a carry,
 * whose place is the run's end.
 */
import {
  BASE_NONE,
  BASE_ZERO_PAGE,
  CODEC_RAW,
  CODEC_RUNS,
  CODEC_SAME,
  CODEC_ZERO,
  MERGE_GAP,
  PAGE_SIZE,
} from './constants';
import { isZeroPage } from './zero';

/** What encodeRuns returns instead of lengths when the runs would not be smaller than the page. */
const NOT_SMALLER: u64 = u64.MAX_VALUE;

/** 64-bit mask of the bytes that differ. `againstZero` is a constant at each call and folds away. */
// @ts-ignore: decorator
@inline
function differenceMask(page: usize, base: usize, againstZero: bool): u64 {
  const zero = i8x16.splat(0);
  const e0 = i8x16.bitmask(i8x16.eq(v128.load(page), againstZero ? zero : v128.load(base)));
  const e1 = i8x16.bitmask(i8x16.eq(v128.load(page, 16), againstZero ? zero : v128.load(base, 16)));
  const e2 = i8x16.bitmask(i8x16.eq(v128.load(page, 32), againstZero ? zero : v128.load(base, 32)));
  const e3 = i8x16.bitmask(i8x16.eq(v128.load(page, 48), againstZero ? zero : v128.load(base, 48)));
  return ~((<u64>(<u32>e0 | (<u32>e1 << 16))) | (<u64>(<u32>e2 | (<u32>e3 << 16)) << 32));
}

/**
 * Whether 64 bytes are equal. All offsets are immediates of the loads: as sums they would each cost an
 * addition. Larger steps are no faster over equal bytes and cost a second look at each difference.
 */
// @ts-ignore: decorator
@inline
function isEqual64(a: usize, b: usize): bool {
  const d0 = v128.or(v128.xor(v128.load(a), v128.load(b)), v128.xor(v128.load(a, 16), v128.load(b, 16)));
  const d1 = v128.or(v128.xor(v128.load(a, 32), v128.load(b, 32)), v128.xor(v128.load(a, 48), v128.load(b, 48)));
  return !v128.any_true(v128.or(d0, d1));
}

// @ts-ignore: decorator
@inline
function copy64(dst: usize, src: usize): void {
  const a = v128.load(src);
  const b = v128.load(src, 16);
  const c = v128.load(src, 32);
  const d = v128.load(src, 48);
  v128.store(dst, a);
  v128.store(dst, b, 16);
  v128.store(dst, c, 32);
  v128.store(dst, d, 48);
}

// @ts-ignore: decorator
@inline
function copyPage(dst: usize, src: usize): void {
  for (let o: usize = 0; o < <usize>PAGE_SIZE; o += 64) copy64(dst + o, src + o);
}

/**
 * Appends the bytes [start, end) of the page to the data stream. Copies in steps of 16 and so writes up to 15
 * bytes past the run, which the next run overwrites (the caller leaves slack after the stream); never reads
 * past the page.
 */
// @ts-ignore: decorator
@inline
function copyRun(data: usize, page: usize, start: u32, end: u32): void {
  let at = start;
  while (at < end && at <= PAGE_SIZE - 16) {
    v128.store(data, v128.load(page + at));
    data += 16;
    at += 16;
  }
  while (at < end) {
    store<u8>(data, load<u8>(page + at));
    data++;
    at++;
  }
}

/** Appends a value below 2^14. */
// @ts-ignore: decorator
@inline
function putVarint(at: usize, value: u32): usize {
  if (value < 128) {
    store<u8>(at, <u8>value);
    return at + 1;
  }
  store<u16>(at, <u16>((value & 127) | 128 | ((value >> 7) << 8)));
  return at + 2;
}

// @ts-ignore: decorator
@inline
function putPair(at: usize, gap: u32, length: u32): usize {
  if ((gap | length) < 128) {
    store<u16>(at, <u16>(gap | (length << 8)));
    return at + 2;
  }
  return putVarint(putVarint(at, gap), length);
}

/**
 * The runs of one page.
 * @returns 0 when page and base are equal, NOT_SMALLER, or control length | data length << 32.
 *   With `updateBase`, the base's differing blocks have been overwritten, except after NOT_SMALLER.
 */
// @ts-ignore: decorator
@inline
function encodeRuns(page: usize, base: usize, againstZero: bool, control: usize, data: usize, updateBase: bool): u64 {
  let o: u32 = 0;
  if (!againstZero) {
    while (isEqual64(page + o, base + o)) {
      o += 64;
      if (o == PAGE_SIZE) return 0;
    }
  }
  // Not equal (or, against zero, known not to be all zero): there is a set bit ahead.
  let mask = differenceMask(page + o, base + o, againstZero);
  while (mask == 0) {
    o += 64;
    mask = differenceMask(page + o, base + o, againstZero);
  }

  let c = control;
  let d = data;
  let previousEnd: u32 = 0;
  // An empty run where the first one starts; the loop below extends it.
  let start: u32 = o + <u32>ctz(mask);
  let end: u32 = start;
  while (true) {
    if (updateBase) copy64(base + o, page + o);
    // Gaps that would be merged are filled in all at once; a branch for each would be mispredicted half of
    // the time.
    let filled = mask | ((mask << 1) & ((mask >> 1) | (mask >> 2))) | ((mask << 2) & (mask >> 1));
    const s: u32 = o + <u32>ctz(filled);
    let carried = filled + (filled & (0 - filled));
    // Only the block's first run can go on from the block before.
    if (s - end > MERGE_GAP) {
      c = putPair(c, start - previousEnd, end - start);
      copyRun(d, page, start, end);
      d += end - start;
      if (<u32>(c - control + (d - data)) >= PAGE_SIZE) return NOT_SMALLER;
      previousEnd = end;
      start = s;
    }
    end = o + <u32>ctz(carried);
    filled &= carried;
    while (filled != 0) {
      c = putPair(c, start - previousEnd, end - start);
      copyRun(d, page, start, end);
      d += end - start;
      if (<u32>(c - control + (d - data)) >= PAGE_SIZE) return NOT_SMALLER;
      previousEnd = end;
      start = o + <u32>ctz(filled);
      carried = filled + (filled & (0 - filled));
      end = o + <u32>ctz(carried);
      filled &= carried;
    }
    o += 64;
    mask = o < PAGE_SIZE ? differenceMask(page + o, base + o, againstZero) : 0;
    if (mask == 0) {
      // An equal block is seldom alone: go on with the cheaper question, as before the first difference.
      o += 64;
      if (!againstZero) while (o < PAGE_SIZE && isEqual64(page + o, base + o)) o += 64;
      for (; o < PAGE_SIZE && mask == 0; o += 64) mask = differenceMask(page + o, base + o, againstZero);
      if (mask == 0) {
        c = putPair(c, start - previousEnd, end - start);
        const dataLength = <u32>(d - data) + (end - start);
        if (<u32>(c - control) + dataLength >= PAGE_SIZE) return NOT_SMALLER;
        copyRun(d, page, start, end);
        return <u64>(<u32>(c - control)) | (<u64>dataLength << 32);
      }
      o -= 64;
    }
  }
}

function encodeAgainstPage(page: usize, base: usize, control: usize, data: usize, updateBase: bool): u64 {
  return encodeRuns(page, base, false, control, data, updateBase);
}

function encodeAgainstZero(page: usize, control: usize, data: usize): u64 {
  return encodeRuns(page, 0, true, control, data, false);
}

/**
 * Encodes `pageCount` pages. See `Kernels.encodePages` for the arguments; `result` receives two u32, the
 * lengths of the control and the data stream.
 */
export function encodePages(
  pageCount: u32,
  newPages: usize,
  bases: usize,
  codecs: usize,
  controlLengths: usize,
  dataLengths: usize,
  control: usize,
  data: usize,
  result: usize,
  updateBases: u32,
): void {
  let c = control;
  let d = data;
  for (let i: u32 = 0; i < pageCount; i++) {
    const page = newPages + <usize>i * PAGE_SIZE;
    const base = load<u32>(bases + (<usize>i << 2));
    const hasBasePage = base > BASE_ZERO_PAGE;
    let codec: u32 = CODEC_RAW;
    let controlLength: u32 = 0;
    let dataLength: u32 = 0;
    if (isZeroPage(page)) {
      const same = base == BASE_ZERO_PAGE || (hasBasePage && isZeroPage(base));
      codec = same ? CODEC_SAME : CODEC_ZERO;
      if (updateBases != 0 && hasBasePage && !same) memory.fill(base, 0, PAGE_SIZE);
    } else {
      if (base != BASE_NONE) {
        const lengths = hasBasePage
          ? encodeAgainstPage(page, base, c, d, updateBases != 0)
          : encodeAgainstZero(page, c, d);
        if (lengths == 0) {
          codec = CODEC_SAME;
        } else if (lengths != NOT_SMALLER) {
          codec = CODEC_RUNS;
          controlLength = <u32>lengths;
          dataLength = <u32>(lengths >> 32);
        }
      }
      if (codec == CODEC_RAW) {
        dataLength = PAGE_SIZE;
        copyPage(d, page);
        if (updateBases != 0 && hasBasePage) copyPage(base, page);
      }
    }
    store<u8>(codecs + i, <u8>codec);
    store<u16>(controlLengths + (<usize>i << 1), <u16>controlLength);
    store<u16>(dataLengths + (<usize>i << 1), <u16>dataLength);
    c += controlLength;
    d += dataLength;
  }
  store<u32>(result, <u32>(c - control));
  store<u32>(result, <u32>(d - data), 4);
}
