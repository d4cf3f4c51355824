/**
 * Values shared with the TypeScript side: `types.ts`, `kernels/codec-ids.ts`, `kernels/decode-result.ts`,
 * `kernels/kernels.ts`.
 */

export const PAGE_SIZE: u32 = 4096;

export const CODEC_ZERO: u32 = 0;
export const CODEC_RAW: u32 = 1;
export const CODEC_RUNS: u32 = 2;
export const CODEC_SAME: u32 = 3;

export const BASE_NONE: u32 = 0;
export const BASE_ZERO_PAGE: u32 = 1;

/**
 * Runs at most this many equal bytes apart become one. A gap kept as a gap costs two control bytes (its own
 * varint and the next run's length), a gap merged costs its length in data: at 2 it is even, and fewer runs
 * encode and decode faster. (One byte is lost when a merge by 2 takes the length past 127; not worth a second
 * test.)
 */
export const MERGE_GAP: u32 = 2;

export const DECODE_OK: u32 = 0;
export const UNKNOWN_CODEC: u32 = 1;
export const UNEXPECTED_PAYLOAD: u32 = 2;
export const RAW_LENGTH: u32 = 3;
export const RECORD_TOO_LONG: u32 = 4;
export const NO_RUNS: u32 = 5;
export const VARINT_TRUNCATED: u32 = 6;
export const VARINT_TOO_LONG: u32 = 7;
export const RUN_EMPTY: u32 = 8;
export const RUN_PAST_PAGE: u32 = 9;
export const DATA_TRUNCATED: u32 = 10;
export const DATA_LEFT_OVER: u32 = 11;
