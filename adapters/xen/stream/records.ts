/**
 * Records as both the stream and the stored device state have them: u32 type, u32 length, body, padding to 8
 * bytes.
 */

import { CheckpointError } from '../../../src/errors.js';
import { padded } from './format.js';

export interface StateRecord {
  readonly type: number;
  readonly body: Uint8Array;
}

export const RECORD_HEADER_BYTES = 8;

/** Four records a CPU, and CPUs are at most some thousands. */
const MAX_RECORDS = 1 << 16;
/** State records of a guest without its pages: some 10 KB a CPU. */
const MAX_STATE_BYTES = 128 << 20;

/** Collects the state records of one guest. */
export class StateRecords {
  readonly #records: StateRecord[] = [];
  #bytes = 0;

  get records(): readonly StateRecord[] {
    return this.#records;
  }

  /** @throws STREAM_MALFORMED for more than any guest has */
  add(record: StateRecord): void {
    this.#bytes += record.body.length;
    if (this.#records.length === MAX_RECORDS || this.#bytes > MAX_STATE_BYTES)
      throw new CheckpointError('STREAM_MALFORMED', 'there are more state records than any guest has');
    this.#records.push(record);
  }
}

/** Caller owns the result. */
export function encodeRecord({ type, body }: StateRecord): Buffer {
  const bytes = Buffer.alloc(RECORD_HEADER_BYTES + padded(body.length));
  bytes.writeUInt32LE(type >>> 0, 0);
  bytes.writeUInt32LE(body.length, 4);
  bytes.set(body, RECORD_HEADER_BYTES);
  return bytes;
}

/** All records of `bytes`, bodies as views of it. @throws STREAM_MALFORMED when one leads past the end */
export function decodeRecords(bytes: Uint8Array): readonly StateRecord[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const records: StateRecord[] = [];
  for (let at = 0; at < bytes.length;) {
    if (at + RECORD_HEADER_BYTES > bytes.length) throw cutOff(at);
    const length = view.getUint32(at + 4, true);
    const end = at + RECORD_HEADER_BYTES + padded(length);
    if (end > bytes.length) throw cutOff(at);
    records.push({
      type: view.getUint32(at, true),
      body: bytes.subarray(at + RECORD_HEADER_BYTES, at + RECORD_HEADER_BYTES + length),
    });
    at = end;
  }
  return records;
}

function cutOff(at: number): CheckpointError {
  return new CheckpointError('STREAM_MALFORMED', `the state record at byte ${at} is cut off`);
}
