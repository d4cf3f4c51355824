/**
 * What `decodeInto` returns. The numbers are internal: they may change with the version, unlike codec ids.
 */
export const DecodeResult = {
  Ok: 0,
  UnknownCodec: 1,
  /** `zero` or `same` with a payload, or `raw` with control bytes. */
  UnexpectedPayload: 2,
  /** `raw` whose data is not 4096 bytes. */
  RawLength: 3,
  /** `runs` with 4096 or more bytes of control and data: the encoder would have stored the page raw. */
  RecordTooLong: 4,
  /** `runs` without control bytes: the encoder would have stored `same`. */
  NoRuns: 5,
  /** The control stream ends inside a pair. */
  VarintTruncated: 6,
  /** A varint of more than two bytes, or not in its shortest form. */
  VarintTooLong: 7,
  /** A run of length 0. */
  RunEmpty: 8,
  /** Gap and length lead past the end of the page. */
  RunPastPage: 9,
  /** The runs need more data bytes than there are. */
  DataTruncated: 10,
  /** Data bytes remain after the last run. */
  DataLeftOver: 11,
} as const;

export type DecodeResult = (typeof DecodeResult)[keyof typeof DecodeResult];

const DECODE_TEXTS: Readonly<Record<DecodeResult, string>> = {
  [DecodeResult.Ok]: 'no error',
  [DecodeResult.UnknownCodec]: 'unknown codec id',
  [DecodeResult.UnexpectedPayload]: 'payload where the codec has none',
  [DecodeResult.RawLength]: 'raw page is not 4096 bytes long',
  [DecodeResult.RecordTooLong]: 'record is not shorter than a page',
  [DecodeResult.NoRuns]: 'no runs in a record of runs',
  [DecodeResult.VarintTruncated]: 'control stream ends inside a run',
  [DecodeResult.VarintTooLong]: 'control number is too long',
  [DecodeResult.RunEmpty]: 'run of length 0',
  [DecodeResult.RunPastPage]: 'run leads past the end of the page',
  [DecodeResult.DataTruncated]: 'runs need more data than the record has',
  [DecodeResult.DataLeftOver]: 'data left over after the last run',
};

/** A few words for a message. */
export function describeDecodeResult(result: DecodeResult): string {
  return DECODE_TEXTS[result];
}
