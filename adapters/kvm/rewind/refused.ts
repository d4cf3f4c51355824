/** What a rewind is refused with, before anything was touched. */

import { CheckpointError, type ErrorDetail } from '../../../src/errors.js';

/** @param reason stable, for programs: `detail.reason` */
export function refused(reason: string, text: string, more: ErrorDetail): CheckpointError {
  return new CheckpointError('REWIND_REFUSED', `no rewind: ${text}`, {
    ...more,
    detail: { reason, ...more.detail },
  });
}
