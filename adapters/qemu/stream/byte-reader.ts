/** Sequential big-endian reads from a stream of buffers, with a bounded buffer of its own. */

import { CheckpointError } from '../../../src/errors.js';
import type { ByteSource } from '../../../src/hypervisor/byte-source.js';
import { formatBytes } from '../../../src/text.js';

const BUFFER_BYTES = 1024 * 1024;
/** More than the devices of most machines. */
const LONG_BYTES = 8 * BUFFER_BYTES;

export class ByteReader {
  readonly #source: AsyncIterator<Uint8Array>;
  readonly #skipInSource: ByteSource['skip'];
  #buffer = Buffer.allocUnsafe(BUFFER_BYTES);
  #start = 0;
  #end = 0;
  /** Input that did not fit into the buffer yet. */
  #rest: Uint8Array = new Uint8Array(0);
  #taken = 0;

  constructor(source: ByteSource) {
    this.#source = source[Symbol.asyncIterator]();
    this.#skipInSource = source.skip;
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

  /**
   * Leaves out so many bytes, without reading them where the source can do that.
   * @throws STREAM_MALFORMED as `need`
   */
  async skip(bytes: number): Promise<void> {
    let left = bytes;
    while (left > 0 && (this.available > 0 || this.#rest.length > 0 || this.#skipInSource === undefined)) {
      if (this.available === 0) await this.need(1);
      const count = Math.min(left, this.available);
      this.view(count);
      left -= count;
    }
    if (left === 0) return;
    this.#skipInSource?.(left);
    this.#taken += left;
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

  /** All that follows, behind `head`. @throws STREAM_MALFORMED above `limitBytes`, without `head` */
  async rest(limitBytes: number, head: Uint8Array): Promise<Buffer> {
    const mostBytes = head.length + limitBytes;
    let all: Buffer = Buffer.allocUnsafe(BUFFER_BYTES);
    all.set(head);
    let length = head.length;
    for (;;) {
      await this.fill(BUFFER_BYTES);
      if (this.available === 0) return all.subarray(0, length);
      const part = this.view(this.available);
      if (length + part.length > mostBytes)
        throw this.malformed(`more than ${formatBytes(limitBytes)} of device state`);
      if (length + part.length > all.length) {
        const longer = roomFor(length + part.length, mostBytes);
        all.copy(longer, 0, 0, length);
        all = longer;
      }
      length += part.copy(all, length);
    }
  }

  malformed(what: string): CheckpointError {
    return new CheckpointError(
      'STREAM_MALFORMED',
      `the migration stream is not usable at byte ${this.#taken}: ${what}`,
      { hint: 'is it a plain stream, as `migrate "exec:cat >FILE"` writes it, and whole?' },
    );
  }
}

/**
 * What is long gets room for all that may come: memory that nobody has written to costs nothing, and what is
 * there need not be held twice, as it is when it moves into a longer buffer.
 */
function roomFor(bytes: number, mostBytes: number): Buffer {
  const doubled = Math.min(bytes * 2, mostBytes);
  if (bytes < LONG_BYTES) return Buffer.allocUnsafeSlow(doubled);
  try {
    return Buffer.allocUnsafeSlow(mostBytes);
  } catch {
    // A host that promises no more memory than it has.
    return Buffer.allocUnsafeSlow(doubled);
  }
}
