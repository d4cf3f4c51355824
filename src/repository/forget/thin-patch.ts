/** Which patch frames can become frames of pages (docs/format.md, forgetting). */

import { BLANK_CONTROL, BLANK_DATA } from '../../format/blank-record.js';
import { MAX_PAYLOAD_BYTES } from '../../format/frame-limits.js';
import { PAGE_SIZE_BYTES } from '../../types.js';

const BLANK_BYTES = BLANK_CONTROL.length + BLANK_DATA.length;

/**
 * Its needed pages must fit, raw, into a frame of pages. With sources its records lie deeper than raw pages do,
 * and the segments say how deep.
 */
export function canBecomePages(sourceCount: number, keptCount: number, recordCount: number): boolean {
  const blankBytes = (recordCount - keptCount) * BLANK_BYTES;
  return sourceCount === 0 && keptCount * PAGE_SIZE_BYTES + blankBytes <= MAX_PAYLOAD_BYTES;
}
