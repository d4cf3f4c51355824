/**
 * The packs of one checkpoint: frames go into the last one, and when that is full it is closed while the next
 * is filled.
 *
 *     frames -->  pack 7: being made durable | pack 8: being made durable | pack 9: takes frames
 */

import type { PackEntry } from '../../format/manifest.js';
import { MAX_FRAMES_PER_PACK } from '../../format/record-ref.js';
import type { PackWriter } from './pack-writer.js';

export interface PackSeriesDeps {
  /** Begins a pack of the next number. */
  readonly newPack: () => PackWriter;
  /** Called when a pack is durable. */
  readonly onDurable: (entry: PackEntry) => void;
  /** Size at which a pack is closed and another begun. */
  readonly targetBytes: number;
}

export class PackSeries {
  readonly #deps: PackSeriesDeps;
  readonly #closing: Promise<PackEntry>[] = [];
  #open: PackWriter | undefined;
  #firstSeq: number | undefined;

  constructor(deps: PackSeriesDeps) {
    this.#deps = deps;
  }

  /** Number of the first pack; undefined while there is none. */
  get firstSeq(): number | undefined {
    return this.#firstSeq;
  }

  /** Bytes in the pack that takes frames. */
  get openBytes(): number {
    return this.#open?.sizeBytes ?? 0;
  }

  /** Takes a whole frame at once. @returns where it lies; `pack.drained()` waits for room */
  append(
    frame: Uint8Array,
    kind: number,
    recordCount: number,
  ): { readonly pack: PackWriter; readonly number: number } {
    const pack = this.#packFor(frame.length);
    return { pack, number: pack.append(frame, kind, recordCount) };
  }

  /** Waits until all packs are durable. @throws what the backend's save threw */
  finish(): Promise<readonly PackEntry[]> {
    this.#close();
    return Promise.all(this.#closing);
  }

  /** Nothing is queued, and no pack is being made durable. @throws what the backend's save threw */
  async idle(): Promise<void> {
    await Promise.all([...this.#closing, this.#open?.drained(0)]);
  }

  /** Gives up the pack that takes frames, and waits for those that are being closed. Never throws. */
  async abort(): Promise<void> {
    const running = this.#open;
    this.#open = undefined;
    await running?.abort();
    await Promise.allSettled(this.#closing);
  }

  #packFor(lengthBytes: number): PackWriter {
    const { newPack, targetBytes } = this.#deps;
    const current = this.#open;
    const isFull =
      current !== undefined &&
      current.frameCount > 0 &&
      (current.sizeBytes + lengthBytes > targetBytes || current.frameCount === MAX_FRAMES_PER_PACK);
    if (isFull) this.#close();
    this.#open ??= newPack();
    this.#firstSeq ??= this.#open.seq;
    return this.#open;
  }

  #close(): void {
    const pack = this.#open;
    this.#open = undefined;
    if (pack === undefined) return;
    const closing = pack.finish().then((entry) => {
      this.#deps.onDurable(entry);
      return entry;
    });
    // Failure is reported by `finish`; until then nobody may be waiting.
    closing.catch(() => undefined);
    this.#closing.push(closing);
  }
}
