/** Storage with little room, which says how much is left. An object that is replaced takes room beside the new one until that is there. */

import { CheckpointError } from '../../src/errors.js';
import type { CallOptions, ObjectBody, SaveOptions } from '../../src/storage/backend.js';
import { MemoryBackend } from '../../src/storage/memory.js';

export class SmallBackend extends MemoryBackend {
  /** Calls that found no room. */
  refusals = 0;

  constructor(readonly sizeBytes: number) {
    super();
  }

  override async save(key: string, body: ObjectBody, options?: SaveOptions): Promise<number> {
    return super.save(key, await this.#fitting(key, body), options);
  }

  override async replace(key: string, body: ObjectBody, options?: SaveOptions): Promise<number> {
    return super.replace(key, await this.#fitting(key, body), options);
  }

  async freeBytes(options?: CallOptions): Promise<number> {
    const objects = await this.list('', options);
    return this.sizeBytes - objects.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  }

  async #fitting(key: string, body: ObjectBody): Promise<Uint8Array> {
    const chunks: Uint8Array[] = [];
    if (body instanceof Uint8Array) chunks.push(body);
    else for await (const chunk of body) chunks.push(chunk.slice());
    const whole = Buffer.concat(chunks);
    if (whole.length <= (await this.freeBytes())) return whole;
    this.refusals++;
    throw new CheckpointError('STORAGE_FULL', `no room for ${key}`);
  }
}
