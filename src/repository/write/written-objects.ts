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

interface WrittenObject {
  readonly key: string;
  /** False once it is known that its save has made no object: one of that name is somebody else's then. */
  mayBeOurs: boolean;
}

export class WrittenObjects {
  readonly #objects: WrittenObject[] = [];
  #sizeBytes = 0;

  /**
   * @param backend a settled one: a save that failed has made nothing, unless it says STORAGE_UNCERTAIN
   * @param isLocked whether the lock of the chain is still held. Without it an object of such a name may be
   *   somebody else's: the next owner uses the same numbers, also after it has removed ours as orphans
   */
  constructor(
    private readonly backend: Pick<StorageBackend, 'remove'>,
    private readonly isLocked: () => Promise<boolean>,
  ) {}

  /** Bytes of the objects that are durable. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** An object is being saved; how that ends says whether it is there and ours. */
  follow(key: string, saving: Promise<unknown>): void {
    const object: WrittenObject = { key, mayBeOurs: true };
    this.#objects.push(object);
    saving.catch((error: unknown) => {
      object.mayBeOurs = isCheckpointError(error, 'STORAGE_UNCERTAIN');
    });
  }

  /** One of the objects is durable. */
  addBytes(sizeBytes: number): void {
    this.#sizeBytes += sizeBytes;
  }

  mark(): WrittenMark {
    return { objectCount: this.#objects.length, sizeBytes: this.#sizeBytes };
  }

  /**
   * Removes what was begun since the mark. Never throws: what cannot be removed is tried again with the next
   * call, and after that is an orphan. An object that somebody else may have made stays.
   */
  async takeBackTo({ objectCount, sizeBytes }: WrittenMark): Promise<void> {
    for (const object of this.#objects.splice(objectCount)) {
      if (!object.mayBeOurs || !(await this.isLocked())) continue;
      if (!(await isGone(this.backend, object.key))) this.#objects.push(object);
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
