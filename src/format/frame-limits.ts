/** Sizes of a frame (docs/format.md, bounds). */

import { PAGE_SIZE_BYTES } from '../types.js';
import { MAX_RECORDS_PER_FRAME } from './record-ref.js';

/**
 * A frame is closed when its control and data bytes reach this. Larger frames compress a little better (zstd
 * gains about 1 % from 128 to 256 KiB of guest memory) and make each scattered page more expensive to read,
 * in proportion.
 */
export const FRAME_PAYLOAD_BYTES = 128 * 1024;

/** The record that reaches the target may still be a whole page. */
export const MAX_PAYLOAD_BYTES = FRAME_PAYLOAD_BYTES + PAGE_SIZE_BYTES;

/** Page index 4, codec 1, two lengths of 2, base reference 8. */
const MAX_COLUMN_BYTES_PER_RECORD = 17;

/**
 * Pages and sources of a patch frame. Decoding one page of it takes reading all sources and unpacking all
 * pages.
 */
export const MAX_PATCH_RECORDS = 256;
export const MAX_PATCH_SOURCES = 512;

export const MAX_RAW_BODY_BYTES = MAX_PAYLOAD_BYTES + MAX_RECORDS_PER_FRAME * MAX_COLUMN_BYTES_PER_RECORD;
