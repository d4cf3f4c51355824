/** Objects in memory, for tests and trials. Gone with the process. */

import type {
  CallOptions,
  ObjectBody,
  SaveOptions,
  StorageBackend,
  StorageProperties,
  StoredObject,
} from './backend.js';
import { throwIfInterrupted } from './interrupted.js';
import { assertKey, compareKeys } from './keys.js';
import { alreadyExists, notFound, outOfRange } from './storage-errors.js';

export class MemoryBackend implements StorageBackend {
  readonly properties: StorageProperties = { location: 'memory:', durable: false };
  readonly #objects = new Map<string, Uint8Array>();

  async save(key: string, body: ObjectBody, { signal, beforeVisible }: SaveOptions = {}): Promise<number> {
    assertKey(key);
    const bytes = await collect(key, body, signal);
    await beforeVisible?.();
    if (this.#objects.has(key)) throw alreadyExists(key, this.properties.location);
    this.#objects.set(key, bytes);
    return bytes.length;
  }

  async replace(key: string, body: ObjectBody, { signal, beforeVisible }: SaveOptions = {}): Promise<number> {
    this.#find(key);
    const bytes = await collect(key, body, signal);
    await beforeVisible?.();
    this.#find(key);
    this.#objects.set(key, bytes);
    return bytes.length;
  }

  // Asynchronous for its errors: a failing call rejects, it does not throw.
  // eslint-disable-next-line @typescript-eslint/require-await
  async load(
    key: string,
    range?: { readonly offsetBytes: number; readonly lengthBytes: number },
    { signal }: CallOptions = {},
  ): Promise<Uint8Array> {
    throwIfInterrupted(signal, `reading ${key}`);
    const bytes = this.#find(key);
    if (range === undefined) return bytes.slice();
    const end = range.offsetBytes + range.lengthBytes;
    if (end > bytes.length) throw outOfRange(key, end, bytes.length);
    return bytes.slice(range.offsetBytes, end);
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- as `load`
  async stat(key: string, { signal }: CallOptions = {}): Promise<StoredObject> {
    throwIfInterrupted(signal, `looking up ${key}`);
    return { key, sizeBytes: this.#find(key).length };
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- as `load`
  async list(prefix: string, { signal }: CallOptions = {}): Promise<readonly StoredObject[]> {
    throwIfInterrupted(signal, `listing ${prefix}`);
    return [...this.#objects]
      .filter(([key]) => key.startsWith(prefix))
      .map(([key, bytes]) => ({ key, sizeBytes: bytes.length }))
      .sort(compareKeys);
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- as `load`
  async remove(key: string, { signal }: CallOptions = {}): Promise<void> {
    throwIfInterrupted(signal, `removing ${key}`);
    this.#find(key);
    this.#objects.delete(key);
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- as `load`
  async confirm(key: string, { signal }: CallOptions = {}): Promise<StoredObject | undefined> {
    throwIfInterrupted(signal, `looking up ${key}`);
    assertKey(key);
    const bytes = this.#objects.get(key);
    return bytes === undefined ? undefined : { key, sizeBytes: bytes.length };
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  #find(key: string): Uint8Array {
    assertKey(key);
    const bytes = this.#objects.get(key);
    if (bytes === undefined) throw notFound(key, this.properties.location);
    return bytes;
  }
}

async function collect(key: string, body: ObjectBody, signal: AbortSignal | undefined): Promise<Uint8Array> {
  throwIfInterrupted(signal, `writing ${key}`);
  const chunks: Uint8Array[] = [];
  for await (const chunk of body instanceof Uint8Array ? [body] : body) {
    throwIfInterrupted(signal, `writing ${key}`);
    chunks.push(chunk.slice());
  }
  throwIfInterrupted(signal, `writing ${key}`);
  return new Uint8Array(Buffer.concat(chunks));
}
