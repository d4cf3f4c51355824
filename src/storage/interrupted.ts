/** Turns an aborted signal into the error that every storage call promises. */

import { CheckpointError, isCheckpointError } from '../errors.js';
import type { CallOptions } from './backend.js';

/** @throws INTERRUPTED when `signal` is aborted */
export function throwIfInterrupted(signal: AbortSignal | undefined, step: string): void {
  if (signal?.aborted !== true) return;
  throw new CheckpointError('INTERRUPTED', `interrupted: ${step}`, { cause: signal.reason });
}

/**
 * Work that may be ended early without being called off: by `until`, beside the signal of `options`.
 * @param work asks the storage with the options that it is given, and rejects with INTERRUPTED when they say so
 * @returns undefined when it was ended early
 * @throws what `work` throws, INTERRUPTED when it was the signal of `options`
 */
export async function unlessEnded<T>(
  until: AbortSignal | undefined,
  options: CallOptions,
  work: (options: CallOptions) => Promise<T>,
): Promise<T | undefined> {
  if (until === undefined) return work(options);
  const { signal } = options;
  if (until.aborted && signal?.aborted !== true) return undefined;
  try {
    return await work({ signal: AbortSignal.any(signal === undefined ? [until] : [signal, until]) });
  } catch (error) {
    const isEnded = until.aborted && signal?.aborted !== true && isCheckpointError(error, 'INTERRUPTED');
    if (!isEnded) throw error;
    return undefined;
  }
}
