/**
 * Writes one pack: frames go in, and the backend takes them out through an async iterable, so that no more
 * than a few MiB wait in memory. The object appears, whole, when `finish` is done, or never.
 */

import { CheckpointError } from '../../errors.js';
import type { SaveOptions, StorageBackend } from '../../storage/backend.js';
import { FRAME_HEADER_BYTES } from '../../format/frame.js';
import type { PackEntry } from '../../format/manifest.js';
import {
  CUT_CHECKSUM_BYTES,
  encodePackEnd,
  encodePackHeader,
  PACK_HEADER_BYTES,
  type FrameEntry,
} from '../../format/pack-format.js';

/**
 * Appending waits while more than this is queued: enough to keep a disk busy, little beside the guest's
 * pages.
 */
const MAX_QUEUED_BYTES = 8 * 1024 * 1024;

export class PackWriter {
  readonly #header: Uint8Array;
  readonly #frames: FrameEntry[] = [];
  readonly #queue: Uint8Array[] = [];
  readonly #saved: Promise<number>;
  #queuedBytes = 0;
  #sizeBytes = PACK_HEADER_BYTES;
  #ended: 'no' | 'finished' | 'aborted' = 'no';
  #failure: { readonly error: unknown } | undefined;
  /** Resolvers of whoever waits for the state to change: the producer for room, the backend for chunks. */
  #waiting: (() => void)[] = [];

  constructor(
    readonly key: string,
    readonly seq: number,
    owner: Uint8Array,
    backend: Pick<StorageBackend, 'save'>,
    options: SaveOptions,
  ) {
    this.#header = encodePackHeader(seq, owner);
    this.#enqueue(this.#header);
    this.#saved = backend.save(key, this.#chunks(), options);
    this.#saved.catch((error: unknown) => {
      this.#failure = { error };
      this.#wake();
    });
  }

  /** Settles with the save of the object. */
  get saved(): Promise<unknown> {
    return this.#saved;
  }

  /** Bytes so far, without the directory. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get frameCount(): number {
    return this.#frames.length;
  }

  /**
   * Takes a whole frame at once and gives its number; `drained()` waits for room. The bytes must not change
   * until the pack is finished or aborted.
   */
  append(frame: Uint8Array, kind: number, recordCount: number): number {
    this.#frames.push({
      offset: this.#sizeBytes,
      lengthBytes: frame.length,
      kind,
      recordCount,
      checksum: frame.slice(FRAME_HEADER_BYTES - 32, FRAME_HEADER_BYTES - 32 + CUT_CHECKSUM_BYTES),
    });
    this.#sizeBytes += frame.length;
    this.#enqueue(frame);
    return this.#frames.length - 1;
  }

  /**
   * Settles when there is room in the queue again.
   * @param mostBytes that may be left in it
   * @throws what the backend's save threw
   */
  async drained(mostBytes = MAX_QUEUED_BYTES): Promise<void> {
    while (this.#queuedBytes > mostBytes && this.#failure === undefined && this.#ended === 'no') {
      await this.#change();
    }
    if (this.#failure !== undefined) throw this.#failure.error;
  }

  /**
   * Writes directory and trailer, and waits until the object is durable.
   * @throws what the backend's save threw
   */
  async finish(): Promise<PackEntry> {
    const end = encodePackEnd(this.#header, this.seq, this.#frames, this.#sizeBytes);
    const sizeBytes = this.#sizeBytes + end.bytes.length;
    this.#enqueue(end.bytes);
    this.#ended = 'finished';
    this.#wake();
    await this.#saved;
    return { seq: this.seq, sizeBytes, frameCount: this.#frames.length, directorySha256: end.sha256 };
  }

  /** Gives up an unfinished pack; nothing of it stays. Never throws. */
  async abort(): Promise<void> {
    if (this.#ended === 'no') this.#ended = 'aborted';
    this.#wake();
    await this.#saved.catch(() => undefined);
  }

  async *#chunks(): AsyncGenerator<Uint8Array> {
    for (;;) {
      if (this.#ended === 'aborted') throw new CheckpointError('INTERRUPTED', `${this.key} was given up`);
      const chunk = this.#queue.shift();
      if (chunk !== undefined) {
        yield chunk;
        this.#queuedBytes -= chunk.length;
        this.#wake();
      } else if (this.#ended === 'finished') return;
      else await this.#change();
    }
  }

  #enqueue(chunk: Uint8Array): void {
    this.#queue.push(chunk);
    this.#queuedBytes += chunk.length;
    this.#wake();
  }

  #change(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
    });
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}
