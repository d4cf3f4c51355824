/**
 * Objects in an object store that speaks S3: key "a/b" is PREFIX/a/b.
 *
 * An object is created by one PUT that the store carries out only if there is none of that name
 * (`If-None-Match: *`), so that of two writers exactly one succeeds. The answer may be lost, and the request
 * is sent again then: a random token in the metadata tells one's own object from that of another. There is
 * no upload in parts: its end cannot be made conditional everywhere, and packs are small enough to be sent
 * once more.
 *
 * What is still under way when a call gives up is the danger: it may take effect later, when somebody has
 * already looked and found nothing. Two things stand against it:
 *
 *     confirm            puts a fence (`fence-object.ts`) where it finds no object
 *     save with a        says what is about to appear, in an object below "~/" (no key begins so), before it
 *     last moment        asks; `removeUnfinished` puts fences in the place of all that is said there
 *
 * So a writer that has lost the lock of a chain cannot commit, however late its request arrives. A removal
 * that is under way cannot be fenced. It does no harm: names of what is removed are not used again, but for
 * those of the reserve, which hold nothing.
 */

import { CheckpointError } from '../../errors.js';
import type {
  CallOptions,
  ObjectBody,
  SaveOptions,
  StorageBackend,
  StorageProperties,
  StoredObject,
} from '../backend.js';
import { assertKey, compareKeys, isKeySegment } from '../keys.js';
import { throwIfInterrupted } from '../interrupted.js';
import { alreadyExists, notFound, unfinishedGone } from '../storage-errors.js';
import type { Answer } from './exchange.js';
import { FENCE_BYTES, hasToken, isFence, newFence, newToken } from './fence-object.js';
import { parseListAnswer, type ListedObject } from './list-answer.js';
import { collectPayload, NO_PAYLOAD, type Payload } from './payload.js';
import { loadInParts } from './ranged-load.js';
import { NoAnswer, type S3Client, type S3Request } from './s3-client.js';
import { fromAnswer, fromNoAnswer } from './s3-errors.js';

export interface S3BackendOptions {
  /** The address as it was given. */
  readonly location: string;
  readonly prefix: string;
  /** The store ignores conditions, and the operator has said that nobody else writes there. */
  readonly isSingleWriter?: boolean;
}

type Put = S3Request & { readonly headers: Readonly<Record<string, string>> };

/** A request that is sent again costs at most this; more would be in memory, fewer would be requests. */
const PACK_BYTES = 32 * 1024 * 1024;
/** Bodies that are whole and on their way; more than that, and who produces them waits. */
const MOST_UNDERWAY_BYTES = 96 * 1024 * 1024;
/** Where it is said what is about to appear. */
const INTENTS = '~/';
const LIST_SIZE = '1000';
/** For so long a signed request is good, and may still arrive. */
const REQUEST_LIFE_MS = 20 * 60_000;

export class S3Backend implements StorageBackend {
  readonly properties: StorageProperties;
  readonly #client: S3Client;
  readonly #root: string;
  readonly #isSingleWriter: boolean;
  /** Keys of objects that requests of ours may still create. */
  readonly #maybeCreated = new Set<string>();
  /** Keys of objects that requests of ours may still remove, and since when. */
  readonly #maybeRemoved = new Map<string, number>();
  readonly #ownIntents = new Set<string>();
  #underwayBytes = 0;
  #waiting: (() => void)[] = [];

  constructor(client: S3Client, options: S3BackendOptions) {
    this.#client = client;
    this.#root = options.prefix === '' ? '' : `${options.prefix}/`;
    this.#isSingleWriter = options.isSingleWriter ?? false;
    this.properties = { location: options.location, durable: true, packBytes: PACK_BYTES };
  }

  async save(key: string, body: ObjectBody, { signal, beforeVisible }: SaveOptions = {}): Promise<number> {
    assertKey(key);
    return this.#withPayload(key, body, signal, async (payload) => {
      if (beforeVisible === undefined) await this.#create(key, payload, signal, false);
      else await this.#createAnnounced(key, payload, signal, beforeVisible);
      return payload.sizeBytes;
    });
  }

  async replace(key: string, body: ObjectBody, { signal, beforeVisible }: SaveOptions = {}): Promise<number> {
    assertKey(key);
    // Whoever replaces it meanwhile wins.
    const { headers } = await this.#head('writing', key, signal);
    return this.#withPayload(key, body, signal, async (payload) => {
      await beforeVisible?.();
      const put = { ...this.#put(key, payload, signal), headers: newToken() };
      if (await this.#putOver(headers.etag ?? '', 'writing', key, put)) return payload.sizeBytes;
      await this.#head('writing', key, signal);
      throw new CheckpointError(
        'STORAGE_IO',
        `writing ${key} in ${this.#where}: somebody else has replaced it`,
        {
          detail: { key },
        },
      );
    });
  }

  async load(
    key: string,
    range?: { readonly offsetBytes: number; readonly lengthBytes: number },
    { signal }: CallOptions = {},
  ): Promise<Uint8Array> {
    assertKey(key);
    return loadInParts({
      ...{ key, range, location: this.#where },
      get: async (headers, mostBytes) => {
        const get = { method: 'GET' as const, path: this.#nameOf(key), headers, mostBytes, signal };
        const answer = await this.#send('reading', key, get);
        // The store says nothing of an object when it has no such range of it.
        if (answer.status === 416) await this.#head('reading', key, signal);
        if (answer.status === 404 || isFence(answer.headers)) throw this.#missing(key, answer);
        if (answer.status >= 300 && answer.status !== 416)
          throw fromAnswer('reading', key, this.#where, answer);
        return answer;
      },
    });
  }

  async stat(key: string, { signal }: CallOptions = {}): Promise<StoredObject> {
    assertKey(key);
    const { headers } = await this.#head('looking up', key, signal);
    return { key, sizeBytes: Number(headers['content-length']) };
  }

  async list(prefix: string, { signal }: CallOptions = {}): Promise<readonly StoredObject[]> {
    throwIfInterrupted(signal, `listing ${prefix}`);
    const found: StoredObject[] = [];
    for (const { name, sizeBytes } of await this.#listNames(prefix, signal)) {
      const isKey = name.split('/').every(isKeySegment);
      if (isKey && !(sizeBytes === FENCE_BYTES && (await this.#isMissing(name, signal))))
        found.push({ key: name, sizeBytes });
    }
    return found.sort(compareKeys);
  }

  async remove(key: string, { signal }: CallOptions = {}): Promise<void> {
    assertKey(key);
    await this.#head('removing', key, signal);
    this.#maybeRemoved.set(key, Date.now());
    const answer = await this.#send('removing', key, {
      ...{ method: 'DELETE', path: this.#nameOf(key), signal },
    });
    this.#maybeRemoved.delete(key);
    if (answer.status >= 300 && answer.status !== 404) throw fromAnswer('removing', key, this.#where, answer);
  }

  async confirm(key: string, { signal }: CallOptions = {}): Promise<StoredObject | undefined> {
    assertKey(key);
    for (;;) {
      const found = await this.#look('looking up', key, signal);
      if (found !== undefined && !isFence(found.headers)) {
        if (this.#mayVanish(key)) throw this.#unsure('removing', key);
        this.#maybeCreated.delete(key);
        return { key, sizeBytes: Number(found.headers['content-length']) };
      }
      if (!this.#maybeCreated.has(key)) return undefined;
      // What is still under way would take the place of a fence there.
      if (this.#isSingleWriter) throw this.#unsure('looking up', key);
      if (await this.#fence(key, found, signal)) {
        this.#maybeCreated.delete(key);
        return undefined;
      }
    }
  }

  async removeUnfinished(prefix: string, { signal }: CallOptions = {}): Promise<number> {
    let removed = 0;
    for (const { name } of await this.#listNames(`${INTENTS}${prefix}`, signal)) {
      const key = name.slice(INTENTS.length);
      if (key.slice(prefix.length).includes('/') || this.#ownIntents.has(key)) continue;
      while (!(await this.#fence(key, await this.#look('removing', key, signal), signal)));
      await this.#dropIntent(key, signal);
      removed++;
    }
    return removed;
  }

  async foreignNames(known: readonly string[], { signal }: CallOptions = {}): Promise<readonly string[]> {
    const tops = (await this.#listNames('', signal)).map(({ name }) => name.split('/', 1)[0]!);
    return [...new Set(tops)].filter((name) => !known.includes(name) && !INTENTS.startsWith(name));
  }

  close(): Promise<void> {
    this.#client.close();
    return Promise.resolve();
  }

  get #where(): string {
    return this.properties.location;
  }

  #nameOf(key: string): string {
    return `${this.#root}${key}`;
  }

  #put(key: string, payload: Payload, signal: AbortSignal | undefined): S3Request {
    return { method: 'PUT', path: this.#nameOf(key), payload, signal };
  }

  /** @param isAnnounced somebody may have fenced the name, and then there must be no such object */
  async #create(
    key: string,
    payload: Payload,
    signal: AbortSignal | undefined,
    isAnnounced: boolean,
  ): Promise<void> {
    const put = { ...this.#put(key, payload, signal), headers: newToken() };
    if (this.#isSingleWriter && !(await this.#isMissing(key, signal))) throw alreadyExists(key, this.#where);
    for (;;) {
      this.#maybeCreated.add(key);
      if (await this.#putNew('writing', key, put)) break;
      const there = await this.#look('writing', key, undefined);
      if (there === undefined) continue;
      if (hasToken(there.headers, put.headers)) break;
      if (!isFence(there.headers) || isAnnounced) this.#maybeCreated.delete(key);
      if (!isFence(there.headers)) throw alreadyExists(key, this.#where);
      if (isAnnounced) throw unfinishedGone(key, this.#where, undefined);
      if (await this.#putOver(there.headers.etag ?? '', 'writing', key, put)) break;
      throwIfInterrupted(signal, `writing ${key}`);
    }
    this.#maybeCreated.delete(key);
  }

  async #createAnnounced(
    key: string,
    payload: Payload,
    signal: AbortSignal | undefined,
    beforeVisible: () => Promise<void>,
  ): Promise<void> {
    this.#ownIntents.add(key);
    try {
      const said = await this.#send('writing', key, {
        ...this.#put(`${INTENTS}${key}`, NO_PAYLOAD, signal),
      });
      if (said.status >= 300) throw fromAnswer('writing', key, this.#where, said);
      await beforeVisible();
      throwIfInterrupted(signal, `writing ${key}`);
      await this.#create(key, payload, signal, true);
    } finally {
      // One that stays costs whoever takes the chain a request.
      if (!this.#maybeCreated.has(key)) await this.#dropIntent(key, undefined).catch(() => undefined);
      this.#ownIntents.delete(key);
    }
  }

  async #dropIntent(key: string, signal: AbortSignal | undefined): Promise<void> {
    const path = this.#nameOf(`${INTENTS}${key}`);
    await this.#send('removing', key, { method: 'DELETE', path, signal });
  }

  /**
   * Takes a name that has no object, or a fence.
   * @param found what was seen there
   * @returns false when that has changed; true also when there is an object, which stays
   */
  async #fence(key: string, found: Answer | undefined, signal: AbortSignal | undefined): Promise<boolean> {
    if (found !== undefined && !isFence(found.headers)) return true;
    const { payload, headers } = newFence();
    const put = { ...this.#put(key, payload, signal), headers };
    return found === undefined
      ? this.#putNew('looking up', key, put)
      : this.#putOver(found.headers.etag ?? '', 'looking up', key, put);
  }

  /** @returns false when there is something of this name, which may be what an earlier try has made */
  async #putNew(step: string, key: string, put: Put): Promise<boolean> {
    const condition: Record<string, string> = this.#isSingleWriter ? {} : { 'if-none-match': '*' };
    const answer = await this.#send(step, key, { ...put, headers: { ...put.headers, ...condition } });
    if (answer.status < 300) return true;
    if (answer.status === 412) return false;
    this.#maybeCreated.delete(key);
    throw fromAnswer(step, key, this.#where, answer);
  }

  /**
   * Puts an object in the place of the one with this ETag.
   * @returns false when there is another one, or none
   */
  async #putOver(etag: string, step: string, key: string, put: Put): Promise<boolean> {
    // Ceph before 17 takes the quotes for a part of the ETag, others want them.
    for (const expected of this.#isSingleWriter ? [undefined] : [etag, etag.replaceAll('"', '')]) {
      const condition: Record<string, string> = expected === undefined ? {} : { 'if-match': expected };
      const answer = await this.#send(step, key, { ...put, headers: { ...put.headers, ...condition } });
      if (answer.status < 300) return true;
      if (answer.status !== 412 && answer.status !== 404) throw fromAnswer(step, key, this.#where, answer);
      const there = await this.#look(step, key, undefined);
      if (there !== undefined && hasToken(there.headers, put.headers)) return true;
      if (there?.headers.etag !== etag) return false;
    }
    return false;
  }

  /** @returns undefined when there is nothing of this name; a fence is something */
  async #look(step: string, key: string, signal: AbortSignal | undefined): Promise<Answer | undefined> {
    throwIfInterrupted(signal, `${step} ${key}`);
    const answer = await this.#send(step, key, { method: 'HEAD', path: this.#nameOf(key), signal });
    if (answer.status === 404) return undefined;
    if (answer.status >= 300) throw fromAnswer(step, key, this.#where, answer);
    return answer;
  }

  /** @throws STORAGE_NOT_FOUND */
  async #head(step: string, key: string, signal: AbortSignal | undefined): Promise<Answer> {
    const answer = await this.#look(step, key, signal);
    if (answer === undefined || isFence(answer.headers)) throw notFound(key, this.#where);
    return answer;
  }

  async #isMissing(key: string, signal: AbortSignal | undefined): Promise<boolean> {
    const answer = await this.#look('looking up', key, signal);
    return answer === undefined || isFence(answer.headers);
  }

  /** Names below the root, with that of the root cut off. */
  async #listNames(prefix: string, signal: AbortSignal | undefined): Promise<readonly ListedObject[]> {
    const found: ListedObject[] = [];
    let next: string | undefined;
    do {
      const answer = await this.#send('listing', prefix, {
        ...{ method: 'GET', path: '', signal },
        query: {
          ...{ 'list-type': '2', 'max-keys': LIST_SIZE, prefix: `${this.#root}${prefix}` },
          ...(next === undefined ? {} : { 'continuation-token': next }),
        },
      });
      if (answer.status >= 300) throw fromAnswer('listing', prefix, this.#where, answer);
      const page = parseListAnswer(answer.body.toString('utf8'));
      found.push(
        ...page.objects.map(({ name, sizeBytes }) => ({ name: name.slice(this.#root.length), sizeBytes })),
      );
      next = page.next;
    } while (next !== undefined);
    return found;
  }

  async #withPayload(
    key: string,
    body: ObjectBody,
    signal: AbortSignal | undefined,
    work: (payload: Payload) => Promise<number>,
  ): Promise<number> {
    const payload = await collectPayload(key, body, signal, () => this.#room());
    this.#underwayBytes += payload.sizeBytes;
    try {
      return await work(payload);
    } finally {
      this.#underwayBytes -= payload.sizeBytes;
      for (const resolve of this.#waiting.splice(0)) resolve();
      await payload.close();
    }
  }

  async #room(): Promise<void> {
    while (this.#underwayBytes > MOST_UNDERWAY_BYTES)
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  async #send(step: string, key: string, request: S3Request): Promise<Answer> {
    try {
      return await this.#client.send(request);
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
      const isChange = request.method === 'PUT' || request.method === 'DELETE';
      throw fromNoAnswer(step, key, this.#where, error, isChange);
    }
  }

  #missing(key: string, answer: Answer): CheckpointError {
    const isBucket = answer.body.includes('NoSuchBucket');
    return isBucket ? fromAnswer('reading', key, this.#where, answer) : notFound(key, this.#where);
  }

  #mayVanish(key: string): boolean {
    const sinceMs = this.#maybeRemoved.get(key);
    return sinceMs !== undefined && Date.now() - sinceMs < REQUEST_LIFE_MS;
  }

  #unsure(step: string, key: string): CheckpointError {
    const cause = new NoAnswer('a request may still be under way', true, undefined);
    return fromNoAnswer(step, key, this.#where, cause, true);
  }
}
