/** What a fork is refused with, before anything was touched. */

import { CheckpointError, type ErrorDetail } from '../../../src/errors.js';

/** @param reason stable, for programs: `detail.reason` */
export function refused(reason: string, text: string, more: ErrorDetail): CheckpointError {
  return new CheckpointError('FORK_REFUSED', `no fork: ${text}`, {
    ...more,
    detail: { reason, ...more.detail },
  });
}
