/** Moves a stream into a socket or a file at the pace of the receiver. */

import type { Writable } from 'node:stream';

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
  const queue = new Queue(sink, signal);
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

class Queue {
  readonly #sink: Writable;
  readonly #signal: AbortSignal | undefined;
  #queuedBytes = 0;
  #failure: { readonly error: unknown } | undefined;
  #wake: () => void = () => undefined;

  constructor(sink: Writable, signal: AbortSignal | undefined) {
    this.#sink = sink;
    this.#signal = signal;
    sink.on('error', this.#onError);
    sink.on('close', this.#onClose);
    signal?.addEventListener('abort', this.#onAbort);
    if (signal?.aborted === true) this.#onAbort();
  }

  write(bytes: Uint8Array): void {
    this.#queuedBytes += bytes.length;
    this.#sink.write(bytes, (error) => {
      this.#queuedBytes -= bytes.length;
      if (error !== null && error !== undefined) this.#fail(error);
      this.#wake();
    });
  }

  async below(bytes: number): Promise<void> {
    while (this.#queuedBytes > bytes && this.#failure === undefined) {
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    if (this.#failure !== undefined) throw this.#failure.error;
  }

  detach(): void {
    this.#sink.off('error', this.#onError);
    this.#sink.off('close', this.#onClose);
    this.#signal?.removeEventListener('abort', this.#onAbort);
  }

  readonly #onError = (error: unknown): void => this.#fail(error);
  readonly #onClose = (): void => this.#fail(new Error('the receiver closed the connection'));
  readonly #onAbort = (): void => this.#fail(this.#signal?.reason);

  #fail(error: unknown): void {
    this.#failure ??= { error };
    this.#wake();
  }
}
