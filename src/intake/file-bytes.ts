/** A file or a pipe as bytes, piece by piece. Of a file, what a reader skips is not read. */

import { open, type FileHandle } from 'node:fs/promises';

import { CheckpointError, systemErrorCode } from '../errors.js';
import type { ByteSource } from '../hypervisor/byte-source.js';

const CHUNK_BYTES = 1 << 20;

/** Iterated over once. The caller closes it. */
export class FileBytes implements ByteSource {
  readonly #path: string;
  readonly #signal: AbortSignal | undefined;
  #handle: FileHandle | undefined;
  #isPipe = false;
  #position = 0;
  /** Still to be left out of a pipe. */
  #owedBytes = 0;

  constructor(path: string, signal: AbortSignal | undefined) {
    this.#path = path;
    this.#signal = signal;
  }

  readonly skip = (bytes: number): void => {
    if (this.#isPipe) this.#owedBytes += bytes;
    else this.#position += bytes;
  };

  /** True of what can be read only once. @throws USAGE when it is not there, or cannot be read */
  async isPipe(): Promise<boolean> {
    await this.#open();
    return this.#isPipe;
  }

  /** @throws USAGE as `isPipe`, and the reason of the signal */
  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void, void> {
    const handle = await this.#open();
    for (;;) {
      this.#signal?.throwIfAborted();
      const piece = Buffer.allocUnsafe(CHUNK_BYTES);
      const at = this.#isPipe ? null : this.#position;
      const { bytesRead } = await this.#named(() => handle.read(piece, 0, piece.length, at));
      if (bytesRead === 0) return;
      this.#position += bytesRead;
      const dropped = Math.min(bytesRead, this.#owedBytes);
      this.#owedBytes -= dropped;
      if (dropped < bytesRead) yield piece.subarray(dropped, bytesRead);
    }
  }

  async close(): Promise<void> {
    const handle = this.#handle;
    this.#handle = undefined;
    await handle?.close();
  }

  async #open(): Promise<FileHandle> {
    this.#handle ??= await this.#named(() => open(this.#path, 'r'));
    const stats = await this.#handle.stat();
    this.#isPipe = !stats.isFile() && !stats.isBlockDevice() && !stats.isDirectory();
    return this.#handle;
  }

  async #named<T>(step: () => Promise<T>): Promise<T> {
    try {
      return await step();
    } catch (cause) {
      const why = systemErrorCode(cause) ?? '';
      if (!['ENOENT', 'EACCES', 'EISDIR'].includes(why)) throw cause;
      throw new CheckpointError('USAGE', `${this.#path} cannot be read: ${why}`, { cause });
    }
  }
}
