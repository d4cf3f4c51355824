/**
 * A backend whose storage hangs while the guest stands still: whoever asks it for anything then, or hands it bytes, waits for
 * ever, and is noted down.
 */

import { MemoryBackend } from '../../src/storage/memory.js';
import type { CallOptions, ObjectBody, StoredObject } from '../../src/storage/backend.js';

export class StillBackend extends MemoryBackend {
  /** What was asked of it in a pause. */
  readonly disturbances: string[] = [];
  readonly #isStill: () => boolean;

  constructor(isStill: () => boolean) {
    super();
    this.#isStill = isStill;
  }

  override save(key: string, body: ObjectBody, options?: CallOptions): Promise<number> {
    return this.#call(`save ${key}`, () => super.save(key, this.#chunks(key, body), options));
  }

  override load(
    key: string,
    range?: { readonly offsetBytes: number; readonly lengthBytes: number },
    options?: CallOptions,
  ): Promise<Uint8Array> {
    return this.#call(`load ${key}`, () => super.load(key, range, options));
  }

  override stat(key: string, options?: CallOptions): Promise<StoredObject> {
    return this.#call(`stat ${key}`, () => super.stat(key, options));
  }

  override list(prefix: string, options?: CallOptions): Promise<readonly StoredObject[]> {
    return this.#call(`list ${prefix}`, () => super.list(prefix, options));
  }

  override remove(key: string, options?: CallOptions): Promise<void> {
    return this.#call(`remove ${key}`, () => super.remove(key, options));
  }

  async #call<T>(what: string, work: () => Promise<T>): Promise<T> {
    await this.#hang(what);
    return work();
  }

  async *#chunks(key: string, body: ObjectBody): AsyncGenerator<Uint8Array> {
    for await (const chunk of body instanceof Uint8Array ? [body] : body) {
      await this.#hang(`bytes of ${key}`);
      yield chunk;
    }
  }

  async #hang(what: string): Promise<void> {
    if (!this.#isStill()) return;
    this.disturbances.push(what);
    await new Promise(() => undefined);
  }
}
