/** Moves a stream into a socket or a file at the pace of the receiver. */

import type { Writable } from 'node:stream';

import { SendQueue } from './send-queue.js';

/** What may wait in the receiver's queue: enough that producing and sending overlap. */
const MAX_QUEUED_BYTES = 2 * 1024 * 1024;

/**
 * Writes everything and waits until the receiver's queue is empty; does not end the sink.
 * @returns bytes written
 * @throws the sink's error, the stream's, or the signal's reason; what was queued by then may or may not have
 *   been written
 */
export async function pushStream(
  stream: AsyncIterable<Uint8Array>,
  sink: Writable,
  signal?: AbortSignal,
): Promise<number> {
  const queue = new SendQueue(sink, signal);
  let sentBytes = 0;
  try {
    for await (const bytes of stream) {
      queue.write(bytes);
      sentBytes += bytes.length;
      await queue.below(MAX_QUEUED_BYTES);
    }
    await queue.below(0);
    return sentBytes;
  } finally {
    queue.detach();
  }
}
