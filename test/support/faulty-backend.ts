/**
 * A backend that fails on purpose, to show what a caller makes of it. Calls are counted from 1.
 *
 *     fail          call n has no effect and rejects; later calls work
 *     lost-reply    call n takes effect and rejects all the same; later calls work
 *
 * After both, the next `outage` calls have no effect and reject, too: nobody can be asked what became of call n. The others:
 *
 *     crash         call n and all later ones have no effect and reject: the process, or its storage, is gone
 *     crash-after   call n takes effect, all later ones reject
 *     torn          if call n is a save, only the first half of the object is stored, and all later calls reject:
 *                   a backend that breaks its promise of whole objects, or a disk that lied about a sync
 *
 * A save that takes effect may ask its caller on the way (`beforeVisible`): the calls of that have an answer.
 */

import { AsyncLocalStorage } from 'node:async_hooks';

import { CheckpointError, type ErrorCode } from '../../src/errors.js';
import type {
  CallOptions,
  ObjectBody,
  SaveOptions,
  StorageBackend,
  StorageProperties,
  StoredObject,
} from '../../src/storage/backend.js';

export type FaultMode = 'fail' | 'lost-reply' | 'crash' | 'crash-after' | 'torn';

export interface FaultPlan {
  readonly mode: FaultMode;
  /** Number of the call; 0 = never. */
  readonly atCall: number;
  /** Default STORAGE_IO. */
  readonly code?: ErrorCode;
  /** Default 0. */
  readonly outage?: number;
}

/**
 * Whose call n takes effect. One for all of them: each of its kind costs every promise of the process from its first use on.
 */
const effect = new AsyncLocalStorage<StorageBackend>();

export class FaultyBackend implements StorageBackend {
  readonly properties: StorageProperties;
  /** Calls seen so far. */
  calls = 0;
  /** The call that was tampered with, such as "save config"; empty until then. */
  faultyCall = '';
  /** All calls, in order. */
  readonly names: string[] = [];
  #isMended = false;
  /** Calls without an answer after call n. */
  #unanswered = 0;

  constructor(
    private readonly inner: StorageBackend,
    private readonly plan: FaultPlan,
  ) {
    this.properties = inner.properties;
  }

  async save(key: string, body: ObjectBody, options?: SaveOptions): Promise<number> {
    return this.#call(
      `save ${key}`,
      () => this.inner.save(key, body, options),
      async () => {
        const whole = await collect(body);
        // Such a backend asks nobody whether the object may be seen.
        return this.inner.save(key, whole.subarray(0, whole.length >>> 1), { signal: options?.signal });
      },
    );
  }

  async replace(key: string, body: ObjectBody, options?: SaveOptions): Promise<number> {
    return this.#call(`replace ${key}`, () => this.inner.replace(key, body, options));
  }

  async load(
    key: string,
    range?: { readonly offsetBytes: number; readonly lengthBytes: number },
    options?: CallOptions,
  ): Promise<Uint8Array> {
    return this.#call(`load ${key}`, () => this.inner.load(key, range, options));
  }

  async stat(key: string, options?: CallOptions): Promise<StoredObject> {
    return this.#call(`stat ${key}`, () => this.inner.stat(key, options));
  }

  async list(prefix: string, options?: CallOptions): Promise<readonly StoredObject[]> {
    return this.#call(`list ${prefix}`, () => this.inner.list(prefix, options));
  }

  async remove(key: string, options?: CallOptions): Promise<void> {
    return this.#call(`remove ${key}`, () => this.inner.remove(key, options));
  }

  async confirm(key: string, options?: CallOptions): Promise<StoredObject | undefined> {
    return this.#call(`confirm ${key}`, () => this.inner.confirm(key, options));
  }

  /** All calls work from now on. */
  mend(): void {
    this.#isMended = true;
  }

  close(): Promise<void> {
    return this.inner.close();
  }

  async #call<T>(what: string, work: () => Promise<T>, torn?: () => Promise<T>): Promise<T> {
    const number = ++this.calls;
    this.names.push(what);
    const { mode, atCall, outage = 0 } = this.plan;
    if (this.#isMended || atCall === 0 || number < atCall || effect.getStore() === this) return work();
    const here = number === atCall;
    if (here) this.faultyCall = what;
    if (!here && (mode === 'fail' || mode === 'lost-reply') && ++this.#unanswered > outage) return work();
    if (here && mode === 'crash-after') return effect.run(this, work);
    if (here && mode === 'lost-reply') await effect.run(this, work);
    if (here && mode === 'torn' && torn !== undefined) await torn();
    throw new CheckpointError(this.plan.code ?? 'STORAGE_IO', `injected fault: call ${number}, ${what}`);
  }
}

async function collect(body: ObjectBody): Promise<Uint8Array> {
  if (body instanceof Uint8Array) return body;
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk.slice());
  return Buffer.concat(chunks);
}
