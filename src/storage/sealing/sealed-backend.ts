/** A backend that encrypts what it is given, and believes nothing that it reads back (`sealed-object.ts`). */

import { isCheckpointError } from '../../errors.js';
import type {
  CallOptions,
  ObjectBody,
  SaveOptions,
  StorageBackend,
  StorageProperties,
  StoredObject,
} from '../backend.js';
import { assertKey, compareKeys, KEYS_KEY } from '../keys.js';
import { alreadyExists, notFound, outOfRange } from '../storage-errors.js';
import type { KeyRing } from './key-ring.js';
import { SealedNames } from './sealed-names.js';
import {
  BLOCK_BYTES,
  HEADER_BYTES,
  lastBlock,
  openBlocks,
  plainBytes,
  readHeader,
  sealBody,
  storedRange,
} from './sealed-object.js';

/** What has to be known of an object to read a range of it. */
interface Opened {
  readonly key: Buffer;
  readonly storedBytes: number;
}

/** Of as many packs as are read in turns. */
const MOST_OPENED = 256;

export class SealedBackend implements StorageBackend {
  readonly properties: StorageProperties;
  readonly #inner: StorageBackend;
  readonly #ring: KeyRing;
  readonly #names: SealedNames;
  readonly #opened = new Map<string, Opened>();

  constructor(inner: StorageBackend, ring: KeyRing) {
    this.properties = inner.properties;
    this.#inner = inner;
    this.#ring = ring;
    this.#names = new SealedNames(ring);
  }

  async save(key: string, body: ObjectBody, options?: SaveOptions): Promise<number> {
    assertKey(key);
    const stored = this.#names.stored(key);
    return plainBytes(await this.#named(key, () => this.#inner.save(stored, this.#seal(key, body), options)));
  }

  async replace(key: string, body: ObjectBody, options?: SaveOptions): Promise<number> {
    assertKey(key);
    this.#opened.delete(key);
    const stored = this.#names.stored(key);
    return plainBytes(
      await this.#named(key, () => this.#inner.replace(stored, this.#seal(key, body), options)),
    );
  }

  async load(
    key: string,
    range?: { readonly offsetBytes: number; readonly lengthBytes: number },
    options?: CallOptions,
  ): Promise<Uint8Array> {
    assertKey(key);
    if (range === undefined) {
      const name = this.#names.stored(key);
      const stored = await this.#named(key, () => this.#inner.load(name, undefined, options));
      const objectKey = readHeader(this.#ring, key, stored.subarray(0, HEADER_BYTES));
      return openBlocks(objectKey, key, stored.subarray(HEADER_BYTES), 0, lastBlock(stored.length));
    }
    const wasOpened = this.#opened.has(key);
    try {
      return await this.#loadRange(key, range, options);
    } catch (error) {
      // It may have been replaced since it was opened.
      const isStale = isCheckpointError(error, 'REPO_DAMAGED') || isCheckpointError(error, 'STORAGE_RANGE');
      if (!wasOpened || !isStale) throw error;
      this.#opened.delete(key);
      return this.#loadRange(key, range, options);
    }
  }

  async stat(key: string, options?: CallOptions): Promise<StoredObject> {
    assertKey(key);
    const { sizeBytes } = await this.#named(key, () => this.#inner.stat(this.#names.stored(key), options));
    return { key, sizeBytes: plainBytes(sizeBytes) };
  }

  async list(prefix: string, options?: CallOptions): Promise<readonly StoredObject[]> {
    // A prefix that ends within the name of a chain says nothing to the storage.
    const stored = this.#names.stored(prefix);
    const asked = stored === prefix && prefix.startsWith('vms/') ? 'vms/' : stored;
    const found: StoredObject[] = [];
    for (const object of await this.#inner.list(asked, options)) {
      const key = this.#names.plain(object.key);
      if (key === undefined || key === KEYS_KEY || !key.startsWith(prefix)) continue;
      found.push({ key, sizeBytes: plainBytes(object.sizeBytes) });
    }
    return found.sort(compareKeys);
  }

  async remove(key: string, options?: CallOptions): Promise<void> {
    assertKey(key);
    this.#opened.delete(key);
    await this.#named(key, () => this.#inner.remove(this.#names.stored(key), options));
  }

  async confirm(key: string, options?: CallOptions): Promise<StoredObject | undefined> {
    assertKey(key);
    const found = await this.#inner.confirm(this.#names.stored(key), options);
    return found === undefined ? undefined : { key, sizeBytes: plainBytes(found.sizeBytes) };
  }

  async removeUnfinished(prefix: string, options?: CallOptions): Promise<number> {
    return (await this.#inner.removeUnfinished?.(this.#names.stored(prefix), options)) ?? 0;
  }

  async foreignNames(known: readonly string[], options?: CallOptions): Promise<readonly string[]> {
    return (await this.#inner.foreignNames?.([...known, KEYS_KEY], options)) ?? [];
  }

  async freeBytes(options?: CallOptions): Promise<number | undefined> {
    return this.#inner.freeBytes?.(options);
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  #seal(key: string, body: ObjectBody): AsyncIterable<Uint8Array> {
    return sealBody(this.#ring, key, body instanceof Uint8Array ? [body] : body);
  }

  async #loadRange(
    key: string,
    { offsetBytes, lengthBytes }: { readonly offsetBytes: number; readonly lengthBytes: number },
    options: CallOptions | undefined,
  ): Promise<Uint8Array> {
    const { key: objectKey, storedBytes } = await this.#open(key, options);
    const sizeBytes = plainBytes(storedBytes);
    const end = offsetBytes + lengthBytes;
    if (end > sizeBytes) throw outOfRange(key, end, sizeBytes);
    if (lengthBytes === 0) return new Uint8Array(0);
    const first = Math.floor(offsetBytes / BLOCK_BYTES);
    const last = Math.floor((end - 1) / BLOCK_BYTES);
    const range = storedRange(first, last, storedBytes);
    const stored = await this.#named(key, () => this.#inner.load(this.#names.stored(key), range, options));
    const plain = openBlocks(objectKey, key, stored, first, lastBlock(storedBytes));
    // Not a view: the caller owns the result, and others must not see the rest through `buffer`.
    return plain.slice(offsetBytes - first * BLOCK_BYTES, end - first * BLOCK_BYTES);
  }

  async #open(key: string, options: CallOptions | undefined): Promise<Opened> {
    const known = this.#opened.get(key);
    if (known !== undefined) return known;
    const stored = this.#names.stored(key);
    const header = { offsetBytes: 0, lengthBytes: HEADER_BYTES };
    const [{ sizeBytes }, bytes] = await this.#named(key, () =>
      Promise.all([this.#inner.stat(stored, options), this.#inner.load(stored, header, options)]),
    );
    const opened = { key: readHeader(this.#ring, key, bytes), storedBytes: sizeBytes };
    const [oldest] = this.#opened.keys();
    if (this.#opened.size >= MOST_OPENED && oldest !== undefined) this.#opened.delete(oldest);
    this.#opened.set(key, opened);
    return opened;
  }

  /** Errors about an object name it as the caller does. */
  async #named<T>(key: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (isCheckpointError(error, 'STORAGE_NOT_FOUND')) throw notFound(key, this.properties.location);
      if (isCheckpointError(error, 'STORAGE_EXISTS')) throw alreadyExists(key, this.properties.location);
      throw error;
    }
  }
}
