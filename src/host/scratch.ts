/**
 * Buffers that are needed for a moment, again and again. Left to the garbage collector they would make it
 * run: V8 counts what lies outside of its heap as well, and 15 MB of such buffers a checkpoint cost one
 * mark-compact of 4 to 10 ms.
 */

/** Larger buffers are not kept. */
const KEPT_BYTES = 4 << 20;
const KEPT_BUFFERS = 4;

export class Scratch {
  readonly #allocate: (sizeBytes: number) => Uint8Array;
  readonly #free: Uint8Array[] = [];

  /** @param allocate memory of a kind of its own, shared for example */
  constructor(allocate: (sizeBytes: number) => Uint8Array = (sizeBytes) => new Uint8Array(sizeBytes)) {
    this.#allocate = allocate;
  }

  /** Hands out so many bytes, of any content, until they are given back. */
  take(sizeBytes: number): Uint8Array {
    const at = this.#free.findIndex(({ length }) => length >= sizeBytes);
    const [found] = at < 0 ? [] : this.#free.splice(at, 1);
    // Sizes are powers of two, so that a buffer taken for one size will do for the next.
    const buffer = found ?? this.#allocate(2 ** Math.ceil(Math.log2(Math.max(sizeBytes, 4096))));
    return buffer.subarray(0, sizeBytes);
  }

  /** Gives back a buffer that `take` handed out; nobody may use it any more. */
  give({ buffer }: Uint8Array): void {
    if (buffer.byteLength > KEPT_BYTES) return;
    this.#free.push(new Uint8Array(buffer));
    this.#free.sort((a, b) => a.length - b.length);
    // The smallest buffer is the least useful one.
    if (this.#free.length > KEPT_BUFFERS) this.#free.shift();
  }
}
