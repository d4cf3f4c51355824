/**
 * How a page is stored. The numbers are part of the repository format (docs/format.md, page records).
 *
 * A record depends on the page's bytes and the base's bytes alone:
 *
 *     same   the page equals its base         nothing to store
 *     zero   the page is all zero             no payload
 *     runs   control + data < 4096            the differences from the base
 *     raw    everything else                  data: the 4096 bytes
 *
 * Payload of `runs`: control is a sequence of (gap, length) varint pairs, data is the new bytes of all runs
 * in order.
 *
 *     page     ........XXXX..........YY......   X, Y: bytes that differ from the base
 *     control  08 04 | 0a 02                    gap: bytes kept since the end of the run before
 *                                               (or the page's start)
 *     data     XXXXYY                           length: at least 1
 *
 * Varints are LEB128, shortest form, hence at most two bytes here. Bytes after the last run are those of the
 * base.
 */
export const CODEC_ZERO = 0;
export const CODEC_RAW = 1;
export const CODEC_RUNS = 2;
export const CODEC_SAME = 3;

export type CodecId = typeof CODEC_ZERO | typeof CODEC_RAW | typeof CODEC_RUNS | typeof CODEC_SAME;

export const CODEC_NAMES: Readonly<Record<CodecId, string>> = {
  [CODEC_ZERO]: 'zero',
  [CODEC_RAW]: 'raw',
  [CODEC_RUNS]: 'runs',
  [CODEC_SAME]: 'same',
};

export function isCodecId(value: number): value is CodecId {
  return value === CODEC_ZERO || value === CODEC_RAW || value === CODEC_RUNS || value === CODEC_SAME;
}
