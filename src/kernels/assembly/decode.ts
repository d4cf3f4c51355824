/**
 * Page decoder. The record comes from a repository that may be damaged or hostile: nothing in it is believed
 * before it has been compared with what is left of the page and of the streams. Writes go to [page, page +
 * 4096) only, reads to the two streams only, and every step of the loop consumes at least two control bytes.
 */
import {
  CODEC_RAW,
  CODEC_RUNS,
  CODEC_SAME,
  CODEC_ZERO,
  DATA_LEFT_OVER,
  DATA_TRUNCATED,
  DECODE_OK,
  NO_RUNS,
  PAGE_SIZE,
  RAW_LENGTH,
  RECORD_TOO_LONG,
  RUN_EMPTY,
  RUN_PAST_PAGE,
  UNEXPECTED_PAYLOAD,
  UNKNOWN_CODEC,
  VARINT_TOO_LONG,
  VARINT_TRUNCATED,
} from './constants';

/** Copies exactly `length` >= 1 bytes; larger pieces overlap instead of ending in a byte loop. */
// @ts-ignore: decorator
@inline
function copyExactly(dst: usize, src: usize, length: u32): void {
  if (length >= 16 && length <= 64) {
    // Two or four pieces from both ends, read before any is written; they overlap in the middle.
    const end = dst + length;
    const tail = src + length;
    const first = v128.load(src);
    const last = v128.load(tail - 16);
    if (length > 32) {
      const second = v128.load(src, 16);
      const third = v128.load(tail - 32);
      v128.store(dst, second, 16);
      v128.store(end - 32, third);
    }
    v128.store(dst, first);
    v128.store(end - 16, last);
  } else if (length > 64) {
    const last = v128.load(src + length - 16);
    const end = dst + length - 16;
    let left = length;
    while (left > 16) {
      v128.store(dst, v128.load(src));
      dst += 16;
      src += 16;
      left -= 16;
    }
    v128.store(end, last);
  } else if (length >= 8) {
    const last = load<u64>(src + length - 8);
    store<u64>(dst, load<u64>(src));
    store<u64>(dst + length - 8, last);
  } else if (length >= 4) {
    const last = load<u32>(src + length - 4);
    store<u32>(dst, load<u32>(src));
    store<u32>(dst + length - 4, last);
  } else {
    store<u8>(dst, load<u8>(src));
    if (length > 1) store<u8>(dst, load<u8>(src, 1), 1);
    if (length > 2) store<u8>(dst, load<u8>(src, 2), 2);
  }
}

// @ts-ignore: decorator
@inline
function decodeRuns(control: usize, controlLength: u32, data: usize, dataLength: u32, page: usize): u32 {
  // Never true of what the encoder writes, and it keeps the loop short whatever the input.
  if (controlLength >= PAGE_SIZE || dataLength >= PAGE_SIZE || controlLength + dataLength >= PAGE_SIZE) {
    return RECORD_TOO_LONG;
  }
  if (controlLength == 0) return NO_RUNS;
  let c: u32 = 0;
  let d: u32 = 0;
  let at: u32 = 0;
  while (c < controlLength) {
    let gap: u32;
    let length: u32;
    const pair: u32 = c + 1 < controlLength ? load<u16>(control + c) : 0x8080;
    if ((pair & 0x8080) == 0) {
      // Commonly both are below 128.
      gap = pair & 0xff;
      length = pair >> 8;
      c += 2;
    } else {
      // Two bytes hold every value up to 4096; a second byte of 0 or with the top bit set is too long.
      gap = load<u8>(control + c);
      c++;
      if (gap >= 128) {
        if (c == controlLength) return VARINT_TRUNCATED;
        const high: u32 = load<u8>(control + c);
        c++;
        if (high == 0 || high >= 128) return VARINT_TOO_LONG;
        gap = (gap & 127) | (high << 7);
      }
      if (c == controlLength) return VARINT_TRUNCATED;
      length = load<u8>(control + c);
      c++;
      if (length >= 128) {
        if (c == controlLength) return VARINT_TRUNCATED;
        const high: u32 = load<u8>(control + c);
        c++;
        if (high == 0 || high >= 128) return VARINT_TOO_LONG;
        length = (length & 127) | (high << 7);
      }
    }
    if (length == 0) return RUN_EMPTY;
    if (gap + length > PAGE_SIZE - at) return RUN_PAST_PAGE;
    if (length > dataLength - d) return DATA_TRUNCATED;
    copyExactly(page + at + gap, data + d, length);
    d += length;
    at += gap + length;
  }
  return d == dataLength ? DECODE_OK : DATA_LEFT_OVER;
}

/**
 * Applies one record to `page`.
 * @returns DECODE_OK or an error number; after an error the page is to be discarded.
 */
export function decodeInto(
  codec: u32,
  control: usize,
  controlLength: u32,
  data: usize,
  dataLength: u32,
  page: usize,
): u32 {
  if (codec == CODEC_RUNS) return decodeRuns(control, controlLength, data, dataLength, page);
  return decodeOther(codec, controlLength, data, dataLength, page);
}

function decodeOther(codec: u32, controlLength: u32, data: usize, dataLength: u32, page: usize): u32 {
  if (codec == CODEC_RAW) {
    if (controlLength != 0) return UNEXPECTED_PAYLOAD;
    if (dataLength != PAGE_SIZE) return RAW_LENGTH;
    memory.copy(page, data, PAGE_SIZE);
    return DECODE_OK;
  }
  if (codec != CODEC_ZERO && codec != CODEC_SAME) return UNKNOWN_CODEC;
  if ((controlLength | dataLength) != 0) return UNEXPECTED_PAYLOAD;
  if (codec == CODEC_ZERO) memory.fill(page, 0, PAGE_SIZE);
  return DECODE_OK;
}

/**
 * Applies records one after the other, each to its own page; several may name the same page. See
 * `Kernels.decodePages`.
 * @returns DECODE_OK, or number of the record << 8 | error number
 */
export function decodePages(
  count: u32,
  codecs: usize,
  controlLengths: usize,
  dataLengths: usize,
  pages: usize,
  control: usize,
  controlBytes: u32,
  data: usize,
  dataBytes: u32,
): u32 {
  let c: u32 = 0;
  let d: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const codec: u32 = load<u8>(codecs + i);
    const controlLength: u32 = load<u16>(controlLengths + (<usize>i << 1));
    const dataLength: u32 = load<u16>(dataLengths + (<usize>i << 1));
    if (controlLength > controlBytes - c || dataLength > dataBytes - d) return (i << 8) | RECORD_TOO_LONG;
    const page = load<u32>(pages + (<usize>i << 2));
    const error =
      codec == CODEC_RUNS
        ? decodeRuns(control + c, controlLength, data + d, dataLength, page)
        : decodeOther(codec, controlLength, data + d, dataLength, page);
    if (error != DECODE_OK) return (i << 8) | error;
    c += controlLength;
    d += dataLength;
  }
  return DECODE_OK;
}
