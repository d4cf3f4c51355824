/** Writes a trace (docs/trace-format.md). The file appears under its name only when it is whole. */

import { closeSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';

import { compress } from '../../src/ffi/zstd.js';
import { putDeltas32 } from '../../src/format/byte-columns.js';
import type { RecordedEpoch } from '../../src/study/trace/recorder.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import {
  BLOCK_END,
  BLOCK_PAGES,
  CONTENT_KNOWN,
  CONTENT_NONE,
  CONTENT_STORED,
  CONTENT_ZERO,
  encodeBlock,
  encodeHeader,
  MAX_BLOCK_PAGES,
  type TraceHeader,
} from '../../src/study/trace/trace-format.js';

/** The VM waits while an epoch is compressed; higher levels gain little on differences. */
const DEFAULT_LEVEL = 6;

export class TraceWriter {
  readonly #path: string;
  readonly #temporary: string;
  readonly #level: number;
  #file: number | undefined;
  /** Pages whose last contents the reader knows. */
  readonly #known = new Set<number>();
  #epochs = 0;
  #sizeBytes = 0;

  constructor(path: string, header: TraceHeader, level = DEFAULT_LEVEL) {
    this.#path = path;
    this.#temporary = `${path}~`;
    this.#level = level;
    this.#file = openSync(this.#temporary, 'w', 0o600);
    this.#put(encodeHeader(header));
  }

  /** Written so far. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** @throws RangeError when the parts of the epoch do not fit together */
  append(epoch: RecordedEpoch): void {
    const { pages, hasContent, before, after } = epoch;
    const contentCount = hasContent.reduce((sum, one) => sum + one, 0);
    if (
      hasContent.length !== pages.length ||
      before.length !== contentCount * PAGE_SIZE_BYTES ||
      after.length !== before.length
    ) {
      throw new RangeError(
        `epoch of ${pages.length} pages, ${contentCount} of them with contents, in ${before.length} bytes`,
      );
    }
    if (pages.some((page, i) => i > 0 && page <= pages[i - 1]!))
      throw new RangeError('pages are not ascending');
    let contentFrom = 0;
    // An epoch without dirty pages has a block too.
    for (let from = 0; from === 0 || from < pages.length; from += MAX_BLOCK_PAGES) {
      const to = Math.min(pages.length, from + MAX_BLOCK_PAGES);
      const flags = hasContent.subarray(from, to);
      const contentTo = contentFrom + flags.reduce((sum, one) => sum + one, 0) * PAGE_SIZE_BYTES;
      const body = this.#body(
        pages.subarray(from, to),
        flags,
        before.subarray(contentFrom, contentTo),
        after.subarray(contentFrom, contentTo),
      );
      const stored = body.length === 0 ? body : compress(body, this.#level);
      const header = {
        kind: BLOCK_PAGES,
        epoch: this.#epochs,
        pageCount: to - from,
        storedBytes: stored.length,
        rawBytes: body.length,
        runUs: Math.round(epoch.runMs * 1000),
      };
      this.#put(encodeBlock(header, stored));
      contentFrom = contentTo;
    }
    this.#epochs++;
  }

  /** Ends the trace and gives it its name. */
  close(): void {
    const end = { kind: BLOCK_END, epoch: this.#epochs, pageCount: 0, storedBytes: 0, rawBytes: 0, runUs: 0 };
    this.#put(encodeBlock(end, new Uint8Array(0)));
    this.#release();
    renameSync(this.#temporary, this.#path);
  }

  /** Drops what was written. Does nothing after `close`. */
  abort(): void {
    if (this.#file === undefined) return;
    this.#release();
    rmSync(this.#temporary, { force: true });
  }

  #body(pages: Uint32Array, hasContent: Uint8Array, before: Uint8Array, after: Uint8Array): Uint8Array {
    const kinds = new Uint8Array(pages.length);
    const stored: Uint8Array[] = [];
    let at = 0;
    pages.forEach((page, i) => {
      if (hasContent[i] === 0) {
        // What the page holds from here on is not in the trace.
        this.#known.delete(page);
        kinds[i] = CONTENT_NONE;
        return;
      }
      const old = before.subarray(at, at + PAGE_SIZE_BYTES);
      at += PAGE_SIZE_BYTES;
      if (this.#known.has(page)) kinds[i] = CONTENT_KNOWN;
      else if (old.every((byte) => byte === 0)) kinds[i] = CONTENT_ZERO;
      else {
        kinds[i] = CONTENT_STORED;
        stored.push(old);
      }
      this.#known.add(page);
    });
    const columns = pages.length * 5;
    const body = new Uint8Array(columns + stored.length * PAGE_SIZE_BYTES + after.length);
    body.set(kinds, putDeltas32(body, 0, pages));
    stored.forEach((old, i) => body.set(old, columns + i * PAGE_SIZE_BYTES));
    const differences = body.subarray(body.length - after.length);
    for (let i = 0; i < after.length; i++) differences[i] = after[i]! ^ before[i]!;
    return body;
  }

  #put(bytes: Uint8Array): void {
    if (this.#file === undefined) throw new TypeError(`trace ${this.#path} is closed`);
    for (let at = 0; at < bytes.length;) at += writeSync(this.#file, bytes, at);
    this.#sizeBytes += bytes.length;
  }

  #release(): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = undefined;
  }
}
