/**
 * Bytes of a file or a pipe, one piece after the other, whose beginning may be looked at before it is read.
 */

/** Each piece is the reader's own. */
export interface ByteSource extends AsyncIterable<Uint8Array> {
  /**
   * Leaves out so many of the bytes that come next, also more than there are. Where it is absent, the reader
   * reads and drops them.
   */
  readonly skip?: ((bytes: number) => void) | undefined;
}

/** A source of which some is taken before the rest is handed on. It is iterated over once. */
export class HeadedBytes implements ByteSource {
  readonly skip: ((bytes: number) => void) | undefined;
  readonly #iterator: AsyncIterator<Uint8Array>;
  /** What was read from the source and not yet taken. */
  #held: Uint8Array = new Uint8Array(0);

  constructor(source: ByteSource) {
    this.#iterator = source[Symbol.asyncIterator]();
    const { skip } = source;
    if (skip === undefined) return;
    this.skip = (bytes) => {
      const ofHeld = Math.min(bytes, this.#held.length);
      this.#held = this.#held.subarray(ofHeld);
      if (bytes > ofHeld) skip(bytes - ofHeld);
    };
  }

  /** The next bytes, which stay in place; fewer when the source ends before. */
  async peek(bytes: number): Promise<Uint8Array> {
    const parts = [this.#held];
    let length = this.#held.length;
    while (length < bytes) {
      const next = await this.#iterator.next();
      if (next.done === true) break;
      parts.push(next.value);
      length += next.value.length;
    }
    if (parts.length > 1) this.#held = Buffer.concat(parts);
    return this.#held.subarray(0, bytes);
  }

  /** The next bytes; fewer when the source ends before. */
  async take(bytes: number): Promise<Uint8Array> {
    const taken = await this.peek(bytes);
    this.#held = this.#held.subarray(taken.length);
    return taken;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void, void> {
    const held = this.#held;
    this.#held = new Uint8Array(0);
    if (held.length > 0) yield held;
    try {
      for (;;) {
        const next = await this.#iterator.next();
        if (next.done === true) return;
        yield next.value;
      }
    } finally {
      await this.#iterator.return?.();
    }
  }
}
