/** Sequential big-endian reads from a stream of buffers, with a bounded buffer of its own. */

import { CheckpointError } from '../../../src/errors.js';

const BUFFER_BYTES = 1024 * 1024;

export class ByteReader {
  readonly #source: AsyncIterator<Uint8Array>;
  #buffer = Buffer.allocUnsafe(BUFFER_BYTES);
  #start = 0;
  #end = 0;
  /** Input that did not fit into the buffer yet. */
  #rest: Uint8Array = new Uint8Array(0);
  #taken = 0;

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** Position in the stream, for messages. */
  get position(): number {
    return this.#taken;
  }

  get available(): number {
    return this.#end - this.#start;
  }

  /** Tries to have `bytes` (at most `BUFFER_BYTES`) at hand. @returns false when the stream ends before */
  async fill(bytes: number): Promise<boolean> {
    while (this.available < bytes) {
      if (this.#rest.length === 0) {
        const next = await this.#source.next();
        if (next.done === true) return false;
        this.#rest = next.value;
      }
      if (this.#start > 0 && this.#end + this.#rest.length > this.#buffer.length) {
        this.#buffer.copyWithin(0, this.#start, this.#end);
        this.#end -= this.#start;
        this.#start = 0;
      }
      const count = Math.min(this.#rest.length, this.#buffer.length - this.#end);
      this.#buffer.set(this.#rest.subarray(0, count), this.#end);
      this.#end += count;
      this.#rest = this.#rest.subarray(count);
    }
    return true;
  }

  /** @throws STREAM_MALFORMED when the stream ends before */
  async need(bytes: number): Promise<void> {
    if (!(await this.fill(bytes))) throw this.malformed('it ends too early');
  }

  /** The next bytes, which must be at hand; a view that is valid until the next `fill`. */
  view(bytes: number): Buffer {
    if (this.available < bytes) throw this.malformed('it ends too early');
    const view = this.#buffer.subarray(this.#start, this.#start + bytes);
    this.#start += bytes;
    this.#taken += bytes;
    return view;
  }

  /** The next byte, left in place. */
  peek(): number {
    if (this.available < 1) throw this.malformed('it ends too early');
    return this.#buffer[this.#start]!;
  }

  u8(): number {
    return this.view(1)[0]!;
  }

  u16(): number {
    return this.view(2).readUInt16BE();
  }

  u32(): number {
    return this.view(4).readUInt32BE();
  }

  /** @throws STREAM_MALFORMED above 2^53, which no length or offset of a stream reaches */
  u64(): number {
    const high = this.u32();
    const low = this.u32();
    if (high >= 2 ** 21) throw this.malformed('a length or an offset is absurd');
    return high * 2 ** 32 + low;
  }

  /** A name of printable ASCII after its length in one byte. */
  name(): string {
    const length = this.u8();
    const text = this.view(length).toString('latin1');
    if (!/^[\x21-\x7e]+$/.test(text)) throw this.malformed('a name is empty or not printable');
    return text;
  }

  /** All that follows. @throws STREAM_MALFORMED above `limitBytes` */
  async rest(limitBytes: number): Promise<Buffer> {
    const parts: Buffer[] = [];
    let length = 0;
    for (;;) {
      // Whole buffers: each part costs memory of its own, and a sender may cut the stream into single bytes.
      await this.fill(BUFFER_BYTES);
      if (this.available === 0) break;
      const part = Buffer.from(this.view(this.available));
      length += part.length;
      if (length > limitBytes) throw this.malformed(`more than ${limitBytes} bytes of device state`);
      parts.push(part);
    }
    return Buffer.concat(parts);
  }

  malformed(what: string): CheckpointError {
    return new CheckpointError(
      'STREAM_MALFORMED',
      `the migration stream is not usable at byte ${this.#taken}: ${what}`,
      { hint: 'is it a plain stream, as `migrate "exec:cat >FILE"` writes it, and whole?' },
    );
  }
}
