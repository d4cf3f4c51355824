/**
 * Objects that one checkpoint has saved, or is saving: how large they are, and how they are taken back when
 * it is given up.
 */

import { isCheckpointError } from '../../errors.js';
import type { StorageBackend } from '../../storage/backend.js';

/** How far a checkpoint was at some moment. */
export interface WrittenMark {
  readonly objectCount: number;
  readonly sizeBytes: number;
}

export class WrittenObjects {
  readonly #keys: string[] = [];
  #sizeBytes = 0;

  constructor(private readonly backend: Pick<StorageBackend, 'remove'>) {}

  /** Bytes of the objects that are durable. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Call this before the object is saved: the object may be there although its save failed. */
  begin(key: string): void {
    this.#keys.push(key);
  }

  /** One of the objects is durable. */
  addBytes(sizeBytes: number): void {
    this.#sizeBytes += sizeBytes;
  }

  mark(): WrittenMark {
    return { objectCount: this.#keys.length, sizeBytes: this.#sizeBytes };
  }

  /**
   * Removes what was begun since the mark. Never throws: what cannot be removed is tried again with the next
   * call, and after that is an orphan.
   */
  async takeBackTo({ objectCount, sizeBytes }: WrittenMark): Promise<void> {
    for (const key of this.#keys.splice(objectCount)) {
      if (!(await isGone(this.backend, key))) this.#keys.push(key);
    }
    this.#sizeBytes = sizeBytes;
  }

  /** Takes everything back, as `takeBackTo` does with a part. */
  takeAllBack(): Promise<void> {
    return this.takeBackTo({ objectCount: 0, sizeBytes: 0 });
  }
}

/** Never throws. @returns whether the object is certainly not there */
async function isGone(backend: Pick<StorageBackend, 'remove'>, key: string): Promise<boolean> {
  try {
    await backend.remove(key);
    return true;
  } catch (error) {
    return isCheckpointError(error, 'STORAGE_NOT_FOUND');
  }
}
