/**
 * The memory of one block in a mapped-ram file (capability mapped-ram of QEMU 9.0 and later): behind the
 * block's size in the list of blocks, at places that it names. All numbers but the bitmap are big-endian; the
 * bitmap is in words of the host, which on x86 makes bit n of the file that of page n. A page whose bit is
 * not set is zero, or was never sent; what lies at its place means nothing.
 *
 *     u32 1 | u64 page size | u64 place of the bitmap | u64 place of the pages | ... bitmap ... pages ...
 *
 * The next block follows behind the last page. Places count from the start of the file, which may begin with
 * something else than the stream.
 *
 * Source: QEMU docs/devel/migration/mapped-ram.rst, migration/ram.c (9.0 to 10.0).
 */

import { PAGE_SIZE_BYTES } from '../../../src/types.js';
import type { ByteReader } from './byte-reader.js';

const VERSION = 1;
const HEADER_BYTES = 4 + 8 + 8 + 8;
const WORD_BYTES = 8;
/** What of a bitmap is looked at in one piece; a piece that is all zero is not kept. */
const PIECE_BYTES = 64 * 1024;
const ZEROS = Buffer.alloc(PIECE_BYTES);
/** 4 TiB, whose bitmap takes 128 MiB: a file of holes claims as much as it likes. */
const MAX_BLOCK_BYTES = 2 ** 42;

export type OnMappedPage = (pageOfBlock: number, bytes: Buffer) => void;

/**
 * Reads what the list of blocks has of one block behind its size.
 * @param startByte place of the stream in the file
 * @param onPage gets each page that is there, in order, as a view that is valid until it returns; absent: the
 *   pages are left out
 * @throws STREAM_MALFORMED
 */
export async function readMappedBlock(
  reader: ByteReader,
  sizeBytes: number,
  startByte: number,
  onPage: OnMappedPage | undefined,
): Promise<void> {
  if (sizeBytes > MAX_BLOCK_BYTES) throw reader.malformed('a block of mapped-ram has more than 4 TiB');
  await reader.need(HEADER_BYTES);
  const version = reader.u32();
  if (version !== VERSION) throw reader.malformed(`mapped-ram of version ${version}`);
  const pageBytes = reader.u64();
  if (pageBytes !== PAGE_SIZE_BYTES) throw reader.malformed(`mapped-ram with pages of ${pageBytes} bytes`);
  const bitmapAt = reader.u64();
  const pagesAt = reader.u64();
  const pageCount = sizeBytes / PAGE_SIZE_BYTES;
  const bitmapBytes = Math.ceil(pageCount / (8 * WORD_BYTES)) * WORD_BYTES;
  const before = bitmapAt - startByte - reader.position;
  const between = pagesAt - bitmapAt - bitmapBytes;
  if (before < 0 || between < 0) throw reader.malformed('mapped-ram lies over something else');
  await reader.skip(before);
  if (onPage === undefined) {
    await reader.skip(bitmapBytes + between + sizeBytes);
    return;
  }
  const bitmap = await readBitmap(reader, bitmapBytes);
  await reader.skip(between);
  await readPages(reader, bitmap, pageCount, onPage);
}

/** Pieces of the bitmap by their number, without those that are all zero. */
type SparseBitmap = ReadonlyMap<number, Buffer>;

async function readBitmap(reader: ByteReader, bitmapBytes: number): Promise<SparseBitmap> {
  const pieces = new Map<number, Buffer>();
  for (let at = 0; at < bitmapBytes; at += PIECE_BYTES) {
    const length = Math.min(PIECE_BYTES, bitmapBytes - at);
    await reader.need(length);
    const piece = reader.view(length);
    if (!piece.equals(ZEROS.subarray(0, length))) pieces.set(at / PIECE_BYTES, Buffer.from(piece));
  }
  return pieces;
}

async function readPages(
  reader: ByteReader,
  bitmap: SparseBitmap,
  pageCount: number,
  onPage: OnMappedPage,
): Promise<void> {
  /** All pages before it are read or left out. */
  let at = 0;
  for (const [number, piece] of bitmap) {
    for (const [i, byte] of piece.entries()) {
      if (byte === 0) continue;
      for (let bit = 0; bit < 8; bit++) {
        if ((byte & (1 << bit)) === 0) continue;
        const page = (number * PIECE_BYTES + i) * 8 + bit;
        if (page >= pageCount) throw reader.malformed('mapped-ram has pages past the end of its block');
        if (page > at) await reader.skip((page - at) * PAGE_SIZE_BYTES);
        if (reader.available < PAGE_SIZE_BYTES) await reader.need(PAGE_SIZE_BYTES);
        onPage(page, reader.view(PAGE_SIZE_BYTES));
        at = page + 1;
      }
    }
  }
  await reader.skip((pageCount - at) * PAGE_SIZE_BYTES);
}
