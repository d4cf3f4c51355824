/** The end of a command whose output cannot be written: nobody reads it any more, or there is no room for it. */

import { CheckpointError, describeError, systemErrorCode } from '../errors.js';

/** A pipe whose reader has gone, and a terminal that was closed. */
const CLOSED: ReadonlySet<string | undefined> = new Set([
  'EPIPE',
  'EIO',
  'ECONNRESET',
  'ERR_STREAM_DESTROYED',
]);

/** INTERRUPTED for an output that nobody reads, OUTPUT_FAILED otherwise. */
export function outputProblem(error: unknown): CheckpointError {
  if (CLOSED.has(systemErrorCode(error)))
    return new CheckpointError('INTERRUPTED', 'nobody reads the output any more');
  return new CheckpointError('OUTPUT_FAILED', `the output cannot be written: ${describeError(error)}`, {
    cause: error,
    hint: 'what the command has finished up to then stays done; `cairn list` shows the checkpoints that exist',
  });
}

/** Settles when everything that was given to the stream is written, or cannot be. */
export async function written(stream: NodeJS.WritableStream): Promise<void> {
  await new Promise<void>((resolve) => {
    stream.write('', () => resolve());
  });
  // Errors of synchronous streams are reported a moment later.
  await new Promise((resolve) => setImmediate(resolve));
}
