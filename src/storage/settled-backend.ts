/**
 * A backend whose callers need not ask what became of a call that failed. After a failure it looks
 * (`StorageBackend.confirm`), and turns what it finds into an answer:
 *
 *     save      the object is there, of the length that was written  -> saved
 *     remove    the object is not there                              -> removed
 *     replace   old and new one cannot be told apart                 -> as the backend said
 *     anything that cannot be looked at                              -> STORAGE_UNCERTAIN
 *
 * So STORAGE_UNCERTAIN is the only code after which a save or a removal may have taken effect. The failures of
 * a backend that says STORAGE_IO where it should say STORAGE_UNCERTAIN are looked at, too. The looks are not
 * aborted by the caller's signal: to look is how one finds out what is to be cleaned up.
 */

import { isCheckpointError } from '../errors.js';
import type {
  CallOptions,
  ObjectBody,
  SaveOptions,
  StorageBackend,
  StorageProperties,
  StoredObject,
} from './backend.js';
import { uncertain, withoutEffect } from './storage-errors.js';

/** After these codes of `save` there certainly is no object of this call. */
const CERTAINLY_UNSAVED = [
  'STORAGE_EXISTS',
  'STORAGE_FULL',
  'STORAGE_READ_ONLY',
  'STORAGE_NOT_FOUND',
] as const;

export class SettledBackend implements StorageBackend {
  readonly properties: StorageProperties;
  readonly #inner: StorageBackend;

  private constructor(inner: StorageBackend) {
    this.properties = inner.properties;
    this.#inner = inner;
  }

  /** A backend that is settled already stays as it is. */
  static of(backend: StorageBackend): StorageBackend {
    return backend instanceof SettledBackend ? backend : new SettledBackend(backend);
  }

  async save(key: string, body: ObjectBody, options: SaveOptions = {}): Promise<number> {
    const counted = new CountedBody(body);
    const { beforeVisible } = options;
    const refusals: unknown[] = [];
    const asked = async (): Promise<void> => {
      try {
        await beforeVisible?.();
      } catch (error) {
        refusals.push(error);
        throw error;
      }
    };
    const passed = beforeVisible === undefined ? options : { ...options, beforeVisible: asked };
    try {
      return await this.#inner.save(key, counted.body, passed);
    } catch (error) {
      // The object has got no name: what lies there is somebody else's.
      if (refusals.length > 0) throw error;
      // A body that was not taken to its end cannot have become an object.
      if (!counted.isWhole || error instanceof RangeError) throw error;
      if (CERTAINLY_UNSAVED.some((code) => isCheckpointError(error, code))) throw error;
      const found = await this.#look('writing', key, error);
      if (found?.sizeBytes === counted.sizeBytes) return found.sizeBytes;
      throw this.#known('writing', key, error);
    }
  }

  replace(key: string, body: ObjectBody, options?: SaveOptions): Promise<number> {
    return this.#inner.replace(key, body, options);
  }

  async remove(key: string, options?: CallOptions): Promise<void> {
    try {
      await this.#inner.remove(key, options);
    } catch (error) {
      if (isCheckpointError(error, 'STORAGE_NOT_FOUND') || error instanceof RangeError) throw error;
      if ((await this.#look('removing', key, error)) === undefined) return;
      throw this.#known('removing', key, error);
    }
  }

  load(
    key: string,
    range?: { readonly offsetBytes: number; readonly lengthBytes: number },
    options?: CallOptions,
  ): Promise<Uint8Array> {
    return this.#inner.load(key, range, options);
  }

  stat(key: string, options?: CallOptions): Promise<StoredObject> {
    return this.#inner.stat(key, options);
  }

  list(prefix: string, options?: CallOptions): Promise<readonly StoredObject[]> {
    return this.#inner.list(prefix, options);
  }

  confirm(key: string, options?: CallOptions): Promise<StoredObject | undefined> {
    return this.#inner.confirm(key, options);
  }

  removeUnfinished(prefix: string, options?: CallOptions): Promise<number> {
    return this.#inner.removeUnfinished?.(prefix, options) ?? Promise.resolve(0);
  }

  foreignNames(known: readonly string[], options?: CallOptions): Promise<readonly string[]> {
    return this.#inner.foreignNames?.(known, options) ?? Promise.resolve([]);
  }

  freeBytes(options?: CallOptions): Promise<number | undefined> {
    return this.#inner.freeBytes?.(options) ?? Promise.resolve(undefined);
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  /** @throws STORAGE_UNCERTAIN with what the call that is asked about said */
  async #look(step: string, key: string, cause: unknown): Promise<StoredObject | undefined> {
    try {
      return await this.#inner.confirm(key);
    } catch {
      throw isCheckpointError(cause, 'STORAGE_UNCERTAIN')
        ? cause
        : uncertain(step, key, this.properties.location, cause);
    }
  }

  /** The call had no effect, as is known by now. */
  #known(step: string, key: string, error: unknown): unknown {
    if (!isCheckpointError(error, 'STORAGE_UNCERTAIN')) return error;
    return withoutEffect(step, key, this.properties.location, error);
  }
}

/** What a backend takes of a body: how much, and whether to the end. */
class CountedBody {
  readonly body: ObjectBody;
  sizeBytes = 0;
  isWhole = false;

  constructor(body: ObjectBody) {
    if (body instanceof Uint8Array) {
      this.body = body;
      this.sizeBytes = body.length;
      this.isWhole = true;
    } else this.body = this.#chunks(body);
  }

  async *#chunks(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of chunks) {
      this.sizeBytes += chunk.length;
      yield chunk;
    }
    this.isWhole = true;
  }
}
