/**
 * Index segments: page -> (record, depth), sorted by page, in slices that are read one by one
 * (docs/format.md, segments). This is header and directory; the slices are in `index-slice.ts`.
 *
 *     0  8 "CAIRNIDX" | 8 2 version | 10 1 level | 11 1 zero | 12 4 seq | 16 16 owner
 *     32 4 entry count n | 36 12 zero | 48 32 SHA-256 over bytes 0-47 and the directory
 *     80 directory, ceil(n / 8192) times: first page 4 | stored length 4 | first 16 bytes of the slice's SHA-256
 *     then the slices, without gaps
 */

import { createHash } from 'node:crypto';

import { damaged } from '../records/damage.js';
import { checkVersion, FORMAT_VERSION } from './format-version.js';
import {
  encodeSlice,
  ENTRY_BYTES,
  SLICE_CHECKSUM_BYTES,
  SLICE_ENTRIES,
  sliceChecksum,
  type IndexEntries,
  type SlicePlace,
} from './index-slice.js';

export interface SegmentId {
  readonly seq: number;
  readonly level: number;
  readonly owner: Uint8Array;
}

export interface EncodedSegment {
  readonly bytes: Uint8Array;
  /** Hex; what a manifest says of the segment. */
  readonly directorySha256: string;
}

/** What a manifest says of a segment. */
export interface ListedSegment {
  readonly entryCount: number;
  readonly sizeBytes: number;
  readonly directorySha256: string;
}

const HEADER_BYTES = 80;
const HASHED_BYTES = 48;
const MAGIC = 'CAIRNIDX';
const DIRECTORY_ENTRY_BYTES = 8 + SLICE_CHECKSUM_BYTES;

function slicesOf(entryCount: number): number {
  return Math.ceil(entryCount / SLICE_ENTRIES);
}

/** Length of header and directory, which a reader begins with. */
export function segmentHeadBytes(entryCount: number): number {
  return HEADER_BYTES + slicesOf(entryCount) * DIRECTORY_ENTRY_BYTES;
}

/**
 * @param pages all of the segment, strictly ascending
 * @param entriesOf called for a slice's pages at a time, so that no more entries are in memory
 * @param level zstd level, 0 = off
 */
export function encodeSegment(
  id: SegmentId,
  pages: Uint32Array,
  entriesOf: (pages: Uint32Array) => IndexEntries,
  level: number,
): EncodedSegment {
  const head = new Uint8Array(segmentHeadBytes(pages.length));
  const view = new DataView(head.buffer);
  const parts: Uint8Array[] = [head];
  for (let number = 0; number < slicesOf(pages.length); number++) {
    const some = pages.subarray(number * SLICE_ENTRIES, (number + 1) * SLICE_ENTRIES);
    const slice = encodeSlice(entriesOf(some), level);
    const at = HEADER_BYTES + number * DIRECTORY_ENTRY_BYTES;
    view.setUint32(at, some[0]!, true);
    view.setUint32(at + 4, slice.length, true);
    head.set(sliceChecksum(slice), at + 8);
    parts.push(slice);
  }
  head.set(Buffer.from(MAGIC, 'latin1'));
  view.setUint16(8, FORMAT_VERSION, true);
  view.setUint8(10, id.level);
  view.setUint32(12, id.seq, true);
  head.set(id.owner, 16);
  view.setUint32(32, pages.length, true);
  const checksum = checksumOf(head);
  head.set(checksum, HASHED_BYTES);
  return { bytes: Buffer.concat(parts), directorySha256: checksum.toString('hex') };
}

/** Where the slices of a segment lie, and which pages they begin with. */
export class SegmentDirectory {
  readonly sliceCount: number;
  readonly #firstPages: Uint32Array;
  /** Of each slice, and where the last one ends. */
  readonly #offsets: Float64Array;
  readonly #head: Uint8Array;

  /**
   * @param head header and directory; not copied
   * @param pageSpan every page is below it
   * @throws REPO_DAMAGED, REPO_VERSION
   */
  constructor(
    readonly key: string,
    head: Uint8Array,
    id: SegmentId,
    readonly listed: ListedSegment,
    readonly pageSpan: number,
  ) {
    const { entryCount, sizeBytes, directorySha256 } = listed;
    if (entryCount > pageSpan || head.length !== segmentHeadBytes(entryCount))
      throw damaged(key, 'index segment is cut off, or has more entries than there are pages');
    const checksum = checksumOf(head);
    if (Buffer.compare(checksum, head.subarray(HASHED_BYTES, HEADER_BYTES)) !== 0)
      throw damaged(key, 'index checksum does not match');
    const view = new DataView(head.buffer, head.byteOffset, head.length);
    if (Buffer.from(head.subarray(0, 8)).toString('latin1') !== MAGIC)
      throw damaged(key, 'not an index segment');
    checkVersion(key, view.getUint16(8, true), []);
    const isExpected =
      checksum.toString('hex') === directorySha256 &&
      view.getUint8(10) === id.level &&
      view.getUint32(12, true) === id.seq &&
      view.getUint32(32, true) === entryCount &&
      Buffer.compare(head.subarray(16, 32), id.owner) === 0;
    if (!isExpected) throw damaged(key, 'not the index segment that the manifest lists');
    const isZero = view.getUint8(11) === 0 && head.subarray(36, HASHED_BYTES).every((byte) => byte === 0);
    if (!isZero) throw damaged(key, 'header of an index segment is not as it should be');
    this.#head = head;
    this.sliceCount = slicesOf(entryCount);
    this.#firstPages = new Uint32Array(this.sliceCount);
    this.#offsets = new Float64Array(this.sliceCount + 1);
    this.#offsets[0] = head.length;
    for (let number = 0; number < this.sliceCount; number++) {
      const at = HEADER_BYTES + number * DIRECTORY_ENTRY_BYTES;
      const firstPage = view.getUint32(at, true);
      const lengthBytes = view.getUint32(at + 4, true);
      const isAfter = number === 0 || firstPage > this.#firstPages[number - 1]!;
      if (!isAfter || firstPage >= pageSpan || lengthBytes === 0 || lengthBytes > this.#rawBytes(number))
        throw damaged(key, 'directory of the index is out of bounds', { slice: number });
      this.#firstPages[number] = firstPage;
      this.#offsets[number + 1] = this.#offsets[number]! + lengthBytes;
    }
    if (this.#offsets[this.sliceCount] !== sizeBytes)
      throw damaged(key, 'slices of the index do not fill the segment');
  }

  place(number: number): SlicePlace {
    const at = HEADER_BYTES + number * DIRECTORY_ENTRY_BYTES + 8;
    return {
      key: this.key,
      number,
      firstPage: this.#firstPages[number]!,
      endPage: this.#firstPages[number + 1] ?? this.pageSpan,
      entryCount: this.#rawBytes(number) / ENTRY_BYTES,
      checksum: this.#head.subarray(at, at + SLICE_CHECKSUM_BYTES),
    };
  }

  /** Where slices [first, end) lie in the segment. */
  range(first: number, end: number): { readonly offsetBytes: number; readonly lengthBytes: number } {
    const offsetBytes = this.#offsets[first]!;
    return { offsetBytes, lengthBytes: this.#offsets[end]! - offsetBytes };
  }

  /** The slice that has the page, if any has; -1 when the page lies before all of them. */
  sliceOf(page: number): number {
    let [from, to] = [0, this.sliceCount];
    while (from < to) {
      const middle = (from + to) >>> 1;
      if (this.#firstPages[middle]! <= page) from = middle + 1;
      else to = middle;
    }
    return from - 1;
  }

  #rawBytes(number: number): number {
    return Math.min(SLICE_ENTRIES, this.listed.entryCount - number * SLICE_ENTRIES) * ENTRY_BYTES;
  }
}

function checksumOf(head: Uint8Array): Buffer {
  return createHash('sha256')
    .update(head.subarray(0, HASHED_BYTES))
    .update(head.subarray(HEADER_BYTES))
    .digest();
}
