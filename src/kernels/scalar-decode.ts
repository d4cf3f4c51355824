/**
 * Twin of `assembly/decode.ts`: the same checks in the same order, so that the error numbers are the same.
 */

import { CODEC_RAW, CODEC_RUNS, CODEC_SAME, CODEC_ZERO } from './codec-ids.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import { DecodeResult } from './decode-result.js';

/** Arguments as `RawKernels.decodeInto`, on the memory's bytes. */
export function scalarDecodeInto(
  memory: Uint8Array,
  codec: number,
  control: number,
  controlLength: number,
  data: number,
  dataLength: number,
  page: number,
): DecodeResult {
  switch (codec) {
    case CODEC_RUNS:
      return decodeRuns(
        memory.subarray(control, control + controlLength),
        memory.subarray(data, data + dataLength),
        memory.subarray(page, page + PAGE_SIZE_BYTES),
      );
    case CODEC_RAW:
      if (controlLength !== 0) return DecodeResult.UnexpectedPayload;
      if (dataLength !== PAGE_SIZE_BYTES) return DecodeResult.RawLength;
      memory.copyWithin(page, data, data + PAGE_SIZE_BYTES);
      return DecodeResult.Ok;
    case CODEC_ZERO:
    case CODEC_SAME:
      if (controlLength !== 0 || dataLength !== 0) return DecodeResult.UnexpectedPayload;
      if (codec === CODEC_ZERO) memory.fill(0, page, page + PAGE_SIZE_BYTES);
      return DecodeResult.Ok;
    default:
      return DecodeResult.UnknownCodec;
  }
}

/** Arguments as `RawKernels.decodePages`, on the memory's bytes. */
export function scalarDecodePages(
  memory: Uint8Array,
  count: number,
  codecs: number,
  controlLengths: number,
  dataLengths: number,
  pages: number,
  control: number,
  controlBytes: number,
  data: number,
  dataBytes: number,
): number {
  const view = new DataView(memory.buffer);
  let controlUsed = 0;
  let dataUsed = 0;
  for (let i = 0; i < count; i++) {
    const controlLength = view.getUint16(controlLengths + i * 2, true);
    const dataLength = view.getUint16(dataLengths + i * 2, true);
    const fits = controlUsed + controlLength <= controlBytes && dataUsed + dataLength <= dataBytes;
    const result = fits
      ? scalarDecodeInto(
          memory,
          memory[codecs + i]!,
          control + controlUsed,
          controlLength,
          data + dataUsed,
          dataLength,
          view.getUint32(pages + i * 4, true),
        )
      : DecodeResult.RecordTooLong;
    if (result !== DecodeResult.Ok) return (i << 8) | result;
    controlUsed += controlLength;
    dataUsed += dataLength;
  }
  return DecodeResult.Ok;
}

function decodeRuns(control: Uint8Array, data: Uint8Array, page: Uint8Array): DecodeResult {
  // Never true of what the encoder writes, and it keeps the loop short whatever the input.
  if (control.length + data.length >= PAGE_SIZE_BYTES) return DecodeResult.RecordTooLong;
  if (control.length === 0) return DecodeResult.NoRuns;
  const numbers = { control, at: 0 };
  let used = 0;
  let end = 0;
  while (numbers.at < control.length) {
    const gap = takeVarint(numbers);
    if (gap < 0) return -gap as DecodeResult;
    const length = takeVarint(numbers);
    if (length < 0) return -length as DecodeResult;
    if (length === 0) return DecodeResult.RunEmpty;
    if (end + gap + length > PAGE_SIZE_BYTES) return DecodeResult.RunPastPage;
    if (used + length > data.length) return DecodeResult.DataTruncated;
    page.set(data.subarray(used, used + length), end + gap);
    used += length;
    end += gap + length;
  }
  return used === data.length ? DecodeResult.Ok : DecodeResult.DataLeftOver;
}

/**
 * The next number, or the negative of an error. Two bytes hold every value up to 4096; a second byte of 0 or
 * with the top bit set is too long.
 */
function takeVarint(numbers: { readonly control: Uint8Array; at: number }): number {
  const { control } = numbers;
  if (numbers.at === control.length) return -DecodeResult.VarintTruncated;
  const low = control[numbers.at++]!;
  if (low < 128) return low;
  if (numbers.at === control.length) return -DecodeResult.VarintTruncated;
  const high = control[numbers.at++]!;
  if (high === 0 || high >= 128) return -DecodeResult.VarintTooLong;
  return (low & 127) | (high << 7);
}
