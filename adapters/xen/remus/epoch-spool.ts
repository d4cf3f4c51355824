/**
 * The pages of an epoch on their way to the memory file: in a file without a name, each at most once, so that
 * it never grows larger than the guest's memory.
 */

import { closeSync, ftruncateSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs';

import { CheckpointError, systemErrorCode } from '../../../src/errors.js';
import { PAGE_SIZE_BYTES } from '../../../src/types.js';

const ZERO_PAGE = Buffer.alloc(PAGE_SIZE_BYTES);
/** Stands for the place of a page of zeros, which takes no room. */
const NO_PLACE = -1;

export class EpochSpool {
  readonly #fd: number;
  /** Where each frame is, in pages. */
  readonly #places = new Map<number, number>();
  #placeCount = 0;
  #isClosed = false;

  /** @param path of a file that is not there, and is not there afterwards */
  constructor(path: string) {
    this.#fd = openSync(path, 'wx+', 0o600);
    unlinkSync(path);
  }

  get pageCount(): number {
    return this.#places.size;
  }

  frames(): IterableIterator<number> {
    return this.#places.keys();
  }

  has(frame: number): boolean {
    return this.#places.has(frame);
  }

  /** The last one of a frame counts. `bytes` is one page. @throws STORAGE_FULL */
  put(frame: number, bytes: Uint8Array): void {
    let place = this.#places.get(frame) ?? NO_PLACE;
    if (place === NO_PLACE) {
      if (Buffer.compare(bytes, ZERO_PAGE) === 0) {
        this.#places.set(frame, NO_PLACE);
        return;
      }
      place = this.#placeCount++;
      this.#places.set(frame, place);
    }
    try {
      writeSync(this.#fd, bytes, 0, PAGE_SIZE_BYTES, place * PAGE_SIZE_BYTES);
    } catch (cause) {
      if (systemErrorCode(cause) !== 'ENOSPC') throw cause;
      throw new CheckpointError('STORAGE_FULL', 'there is no room for the memory of the guest', {
        cause,
        hint: 'name a folder with room for twice the memory of the guest with --temp',
      });
    }
  }

  /** @param into one page */
  read(frame: number, into: Uint8Array): void {
    const place = this.#places.get(frame) ?? NO_PLACE;
    if (place === NO_PLACE) into.fill(0);
    else readSync(this.#fd, into, 0, PAGE_SIZE_BYTES, place * PAGE_SIZE_BYTES);
  }

  /** Takes over what `newer` has. */
  absorb(newer: EpochSpool): void {
    const page = Buffer.alloc(PAGE_SIZE_BYTES);
    for (const frame of newer.frames()) {
      newer.read(frame, page);
      this.put(frame, page);
    }
  }

  clear(): void {
    this.#places.clear();
    this.#placeCount = 0;
    ftruncateSync(this.#fd);
  }

  close(): void {
    if (!this.#isClosed) closeSync(this.#fd);
    this.#isClosed = true;
  }
}
