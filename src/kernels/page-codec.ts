/**
 * Encodes and decodes one page at a time, from and into ordinary byte arrays: for readers, tools and tests.
 * The batch path of a checkpoint calls the kernels directly on pages that already lie in linear memory.
 */

import { CheckpointError } from '../errors.js';
import { DecodeResult, describeDecodeResult } from './decode-result.js';
import type { Kernels } from './kernels.js';
import { BASE_NONE, controlCapacityBytes, dataCapacityBytes } from './kernels.js';
import { sharedKernels } from './shared-kernels.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import type { CodecId } from './codec-ids.js';
import { CODEC_NAMES, isCodecId } from './codec-ids.js';

/** A page as stored. See `codec-ids.ts` for the payload. */
export interface PageRecord {
  readonly codec: number;
  readonly control: Uint8Array;
  readonly data: Uint8Array;
}

export interface EncodedPage extends PageRecord {
  readonly codec: CodecId;
}

// Scratch layout. The first bytes stay free: no pointer may look like BASE_NONE or BASE_ZERO_PAGE.
const PAGE_AT = 64;
const BASE_AT = PAGE_AT + PAGE_SIZE_BYTES;
const DATA_AT = BASE_AT + PAGE_SIZE_BYTES;
const CONTROL_AT = DATA_AT + dataCapacityBytes(1);
const FIELDS_AT = Math.ceil((CONTROL_AT + Math.max(controlCapacityBytes(1), PAGE_SIZE_BYTES)) / 64) * 64;
const BASES_AT = FIELDS_AT;
const RESULT_AT = FIELDS_AT + 8;
const CODECS_AT = FIELDS_AT + 16;
const CONTROL_LENGTHS_AT = FIELDS_AT + 18;
const DATA_LENGTHS_AT = FIELDS_AT + 20;
const SCRATCH_BYTES = FIELDS_AT + 64;

export class PageCodec {
  /** @param kernels whose memory, from its start, is free for scratch during each call */
  constructor(private readonly kernels: Kernels = sharedKernels()) {}

  /**
   * Encodes one page, against `base` when there is one. Caller owns the record.
   * @throws RangeError when page or base are not 4096 bytes
   */
  encode(page: Uint8Array, base?: Uint8Array): EncodedPage {
    checkPage('page', page);
    const { kernels } = this;
    kernels.ensure(SCRATCH_BYTES);
    const memory = kernels.bytes();
    memory.set(page, PAGE_AT);
    if (base !== undefined) {
      checkPage('base', base);
      memory.set(base, BASE_AT);
    }
    new Uint32Array(memory.buffer, BASES_AT, 1)[0] = base === undefined ? BASE_NONE : BASE_AT;
    const { controlBytes, dataBytes } = kernels.encodePages({
      pageCount: 1,
      newPages: PAGE_AT,
      bases: BASES_AT,
      codecs: CODECS_AT,
      controlLengths: CONTROL_LENGTHS_AT,
      dataLengths: DATA_LENGTHS_AT,
      control: CONTROL_AT,
      data: DATA_AT,
      result: RESULT_AT,
      updateBases: false,
    });
    return {
      codec: memory[CODECS_AT] as CodecId,
      control: memory.slice(CONTROL_AT, CONTROL_AT + controlBytes),
      data: memory.slice(DATA_AT, DATA_AT + dataBytes),
    };
  }

  /**
   * Applies a record to `page`, in place: for `runs` and `same` it holds the base. Unchanged when this
   * throws.
   * @throws CODEC_MALFORMED when the record is not one, with the reason; RangeError when `page` is not 4096
   *   bytes
   */
  decode(record: PageRecord, page: Uint8Array): void {
    checkPage('page', page);
    const { codec, control, data } = record;
    // No valid record has more than a page of either; longer ones need not be staged to be refused.
    if (control.length > PAGE_SIZE_BYTES || data.length > PAGE_SIZE_BYTES) {
      throw malformed(record, DecodeResult.RecordTooLong);
    }
    const { kernels } = this;
    kernels.ensure(SCRATCH_BYTES);
    const memory = kernels.bytes();
    memory.set(page, PAGE_AT);
    memory.set(control, CONTROL_AT);
    memory.set(data, DATA_AT);
    const result = kernels.decodeInto(codec, CONTROL_AT, control.length, DATA_AT, data.length, PAGE_AT);
    if (result !== DecodeResult.Ok) throw malformed(record, result);
    page.set(memory.subarray(PAGE_AT, PAGE_AT + PAGE_SIZE_BYTES));
  }
}

function malformed(record: PageRecord, result: DecodeResult): CheckpointError {
  const name = isCodecId(record.codec) ? CODEC_NAMES[record.codec] : `codec ${record.codec}`;
  return new CheckpointError(
    'CODEC_MALFORMED',
    `decoding a page record (${name}): ${describeDecodeResult(result)}`,
    {
      detail: {
        codec: record.codec,
        controlLength: record.control.length,
        dataLength: record.data.length,
        result,
      },
    },
  );
}

function checkPage(name: string, page: Uint8Array): void {
  if (page.length !== PAGE_SIZE_BYTES)
    throw new RangeError(`${name} of ${page.length} bytes, not ${PAGE_SIZE_BYTES}`);
}
