/** Reads an object, or a range of it, in parts at once: one connection rarely fills a line. */

import { CheckpointError } from '../../errors.js';
import { outOfRange, roomFor } from '../storage-errors.js';
import type { Answer } from './exchange.js';

export interface RangedLoad {
  readonly key: string;
  readonly location: string;
  readonly range: { readonly offsetBytes: number; readonly lengthBytes: number } | undefined;
  /** Answers with 200, 206 or 416. */
  readonly get: (headers: Record<string, string>, mostBytes: number) => Promise<Answer>;
}

const PART_BYTES = 8 * 1024 * 1024;
const AT_ONCE = 4;
/** An object that is replaced again and again while it is read is not read. */
const ATTEMPTS = 3;

/** @throws STORAGE_RANGE, STORAGE_IO, what `get` throws */
export async function loadInParts(load: RangedLoad): Promise<Uint8Array> {
  for (let attempt = 1; ; attempt++) {
    const bytes = await loadOnce(load);
    if (bytes !== undefined) return bytes;
    if (attempt === ATTEMPTS)
      throw new CheckpointError(
        'STORAGE_IO',
        `reading ${load.key} in ${load.location}: it changes all the time`,
        {
          detail: { key: load.key },
          retryable: true,
        },
      );
  }
}

/** @returns undefined when it was replaced meanwhile */
async function loadOnce(load: RangedLoad): Promise<Uint8Array | undefined> {
  const { key, range } = load;
  const start = range?.offsetBytes ?? 0;
  const wanted = range?.lengthBytes;
  // Something is asked for also when nothing is wanted: whether there is such an object.
  const first = await getPart(load, start, Math.min(PART_BYTES, Math.max(1, wanted ?? PART_BYTES)));
  const end = wanted === undefined ? first.totalBytes : start + wanted;
  if (end > first.totalBytes) throw outOfRange(key, end, first.totalBytes);
  const bytes = roomFor(key, end - start);
  bytes.set(first.bytes.subarray(0, bytes.length));
  let next = first.bytes.length;
  const worker = async (): Promise<boolean> => {
    while (next < bytes.length) {
      const at = next;
      next += PART_BYTES;
      const count = Math.min(PART_BYTES, bytes.length - at);
      const part = await getPart(load, start + at, count);
      if (part.etag !== first.etag || part.bytes.length !== count) return false;
      bytes.set(part.bytes, at);
    }
    return true;
  };
  const areSame = await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return areSame.every(Boolean) ? bytes : undefined;
}

interface Part {
  readonly bytes: Uint8Array;
  readonly totalBytes: number;
  readonly etag: string | undefined;
}

async function getPart({ key, location, get }: RangedLoad, from: number, count: number): Promise<Part> {
  const answer = await get({ range: `bytes=${from}-${from + count - 1}` }, count);
  const { etag } = answer.headers;
  const totalBytes = Number(/\/(\d+)$/.exec(answer.headers['content-range'] ?? '')?.[1] ?? NaN);
  // A store that does not name the length of an object which has no such range: none starts there.
  if (answer.status === 416)
    return { bytes: new Uint8Array(0), totalBytes: Number.isNaN(totalBytes) ? from : totalBytes, etag };
  if (answer.status === 200 && from === 0 && answer.body.length <= count)
    return { bytes: answer.body, totalBytes: answer.body.length, etag };
  if (answer.status !== 206 || Number.isNaN(totalBytes) || answer.body.length > count)
    throw new CheckpointError('STORAGE_IO', `reading ${key} in ${location}: the store gave another range`, {
      detail: { key, status: answer.status },
    });
  return { bytes: answer.body, totalBytes, etag };
}
