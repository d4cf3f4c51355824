/**
 * Reads a trace (docs/trace-format.md), epoch by epoch. Nothing of a block is used before its checksum is
 * found right.
 */

import { closeSync, openSync, readSync } from 'node:fs';

import { describeError } from '../../errors.js';
import { decompress } from '../../ffi/zstd.js';
import { takeDeltas32 } from '../../format/byte-columns.js';
import { PAGE_SIZE_BYTES } from '../../types.js';
import {
  BLOCK_END,
  BLOCK_HEADER_BYTES,
  checkBlock,
  CONTENT_KNOWN,
  CONTENT_NONE,
  CONTENT_STORED,
  CONTENT_ZERO,
  decodeBlockHeader,
  decodeHeader,
  FILE_HEADER_BYTES,
  jsonLengthOf,
  malformed,
  type BlockHeader,
  type TraceHeader,
} from './trace-format.js';

export interface TraceEpoch {
  /** Number of the epoch, from 0. */
  readonly index: number;
  /** Time for which the guest ran. */
  readonly runMs: number;
  /** All pages that became dirty, ascending. */
  readonly pages: Uint32Array;
  /** The pages of `pages` whose contents the trace has, ascending. */
  readonly contentPages: Uint32Array;
  /** 4096 bytes for each of `contentPages`: before the epoch, after it. Caller owns them. */
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

/**
 * What is held of a trace: zstd makes up to 32768 bytes of one, and a file of some KiB must not fill memory. Contents
 * that are stored compress to a third; pages that were written and not changed cost next to nothing, but only pages
 * whose contents were stored or zero before are held.
 */
const FREE_HELD_BYTES = 64 << 20;
const HELD_FOR_EACH = 1024;

interface Part {
  readonly pages: Uint32Array;
  readonly contentPages: Uint32Array;
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

export class TraceReader {
  readonly header: TraceHeader;
  readonly #path: string;
  readonly #file: number;
  readonly #firstBlock: number;

  private constructor(path: string, file: number, header: TraceHeader, firstBlock: number) {
    this.#path = path;
    this.#file = file;
    this.header = header;
    this.#firstBlock = firstBlock;
  }

  /** @throws TRACE_MALFORMED; the system's error when there is no such file */
  static open(path: string): TraceReader {
    const file = openSync(path, 'r');
    try {
      const jsonLength = jsonLengthOf(readAt(file, 0, FILE_HEADER_BYTES), path);
      const bytes = readAt(file, 0, FILE_HEADER_BYTES + jsonLength);
      if (bytes.length < FILE_HEADER_BYTES + jsonLength) throw malformed(path, 'ends inside its header');
      return new TraceReader(path, file, decodeHeader(bytes, path), bytes.length);
    } catch (error) {
      closeSync(file);
      throw error;
    }
  }

  /**
   * Gives the epochs, from the first one on; may be called again. Holds the last contents of every page of
   * the trace.
   * @throws TRACE_MALFORMED
   */
  *epochs(): Generator<TraceEpoch> {
    const latest = new Map<number, Uint8Array>();
    let parts: Part[] = [];
    let current: BlockHeader | undefined;
    for (let at = this.#firstBlock; ;) {
      const head = readAt(this.#file, at, BLOCK_HEADER_BYTES);
      const header = decodeBlockHeader(head, this.#path);
      const body = readAt(this.#file, at + BLOCK_HEADER_BYTES, header.storedBytes);
      if (body.length < header.storedBytes) throw malformed(this.#path, 'ends inside a block');
      checkBlock(head, body, this.#path);
      at += BLOCK_HEADER_BYTES + body.length;
      const expected = current === undefined ? 0 : current.epoch + 1;
      const goesOn = header.kind !== BLOCK_END && header.epoch === current?.epoch;
      if (!goesOn) {
        if (header.epoch !== expected) throw malformed(this.#path, `epoch ${header.epoch} out of turn`);
        if (current !== undefined) yield joined(current, parts);
        if (header.kind === BLOCK_END) return;
        parts = [];
      }
      current = header;
      parts.push(this.#part(header, body, latest, parts.at(-1)?.pages.at(-1) ?? -1));
      if (heldBytes(latest, parts) > FREE_HELD_BYTES + at * HELD_FOR_EACH)
        throw malformed(this.#path, `epoch ${header.epoch}: more contents than a file of this length has`);
    }
  }

  close(): void {
    closeSync(this.#file);
  }

  #part(header: BlockHeader, stored: Buffer, latest: Map<number, Uint8Array>, lastPage: number): Part {
    const fail = (what: string): Error => malformed(this.#path, `epoch ${header.epoch}: ${what}`);
    const { pageCount, rawBytes } = header;
    let body: Uint8Array;
    try {
      body = rawBytes === 0 ? new Uint8Array(0) : decompress(stored, rawBytes);
    } catch (cause) {
      throw malformed(
        this.#path,
        `epoch ${header.epoch} does not decompress: ${describeError(cause)}`,
        cause,
      );
    }
    if (body.length < pageCount * 5) throw fail('block is shorter than its columns');
    const pages = takeDeltas32(body, 0, pageCount);
    const kinds = body.subarray(pageCount * 4, pageCount * 5);
    const contentPages = pages.filter((_, i) => kinds[i] !== CONTENT_NONE);
    const storedCount = kinds.reduce((sum, kind) => sum + (kind === CONTENT_STORED ? 1 : 0), 0);
    const afterAt = pageCount * 5 + storedCount * PAGE_SIZE_BYTES;
    if (body.length !== afterAt + contentPages.length * PAGE_SIZE_BYTES)
      throw fail('block of a wrong length');
    const before = new Uint8Array(contentPages.length * PAGE_SIZE_BYTES);
    const after = body.slice(afterAt);
    let storedAt = pageCount * 5;
    let at = 0;
    let previous = lastPage;
    pages.forEach((page, i) => {
      if (page <= previous || page >= this.header.layout.pageSpan) throw fail('pages are out of order');
      previous = page;
      const kind = kinds[i]!;
      if (kind === CONTENT_NONE) {
        latest.delete(page);
        return;
      }
      const old = before.subarray(at, at + PAGE_SIZE_BYTES);
      if (kind === CONTENT_STORED) {
        old.set(body.subarray(storedAt, storedAt + PAGE_SIZE_BYTES));
        storedAt += PAGE_SIZE_BYTES;
      } else if (kind === CONTENT_KNOWN) {
        const known = latest.get(page);
        if (known === undefined) throw fail(`contents of page ${page} build on some that are not there`);
        old.set(known);
      } else if (kind !== CONTENT_ZERO) throw fail(`unknown kind of contents ${kind}`);
      for (let k = 0; k < PAGE_SIZE_BYTES; k++) after[at + k]! ^= old[k]!;
      latest.set(page, after.slice(at, at + PAGE_SIZE_BYTES));
      at += PAGE_SIZE_BYTES;
    });
    return { pages, contentPages, before, after };
  }
}

function heldBytes(latest: ReadonlyMap<number, Uint8Array>, parts: readonly Part[]): number {
  return parts.reduce((sum, { before }) => sum + 2 * before.length, latest.size * PAGE_SIZE_BYTES);
}

function joined(header: BlockHeader, parts: readonly Part[]): TraceEpoch {
  const only = parts.length === 1 ? parts[0] : undefined;
  const whole = only ?? {
    pages: Uint32Array.from(parts.flatMap(({ pages }) => [...pages])),
    contentPages: Uint32Array.from(parts.flatMap(({ contentPages }) => [...contentPages])),
    before: Buffer.concat(parts.map(({ before }) => before)),
    after: Buffer.concat(parts.map(({ after }) => after)),
  };
  return { index: header.epoch, runMs: header.runUs / 1000, ...whole };
}

/** Up to `length` bytes; fewer at the end of the file. */
function readAt(file: number, at: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  let got = 0;
  while (got < length) {
    const read = readSync(file, bytes, got, length - got, at + got);
    if (read === 0) break;
    got += read;
  }
  return bytes.subarray(0, got);
}
