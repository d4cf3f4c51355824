/** Turns an aborted signal into the error that every storage call promises. */

import { CheckpointError } from '../errors.js';

/** @throws INTERRUPTED when `signal` is aborted */
export function throwIfInterrupted(signal: AbortSignal | undefined, step: string): void {
  if (signal?.aborted !== true) return;
  throw new CheckpointError('INTERRUPTED', `interrupted: ${step}`, { cause: signal.reason });
}
