/** Writes to a socket or a file, and waits for room: what is queued is bounded by who asks. */

import type { Writable } from 'node:stream';

/** Keeps listening to the sink until `detach`. */
export class SendQueue {
  readonly #sink: Writable;
  readonly #signal: AbortSignal | undefined;
  #queuedBytes = 0;
  #failure: { readonly error: unknown } | undefined;
  readonly #waiting = new Set<() => void>();

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

  /** @throws the sink's error, or the signal's reason */
  async below(bytes: number): Promise<void> {
    while (this.#queuedBytes > bytes && this.#failure === undefined) {
      await new Promise<void>((resolve) => this.#waiting.add(resolve));
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

  #wake(): void {
    for (const wake of this.#waiting) wake();
    this.#waiting.clear();
  }
}
