/**
 * Signed requests to one bucket, tried again while the store is busy, restarts, or the connection breaks.
 *
 * What is tried again was asked for in a way that does no harm twice: the caller sees to that. A request whose
 * last word is missing ends in `NoAnswer`, which says whether the store may have carried it out.
 */

import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';

import { describeError, isCheckpointError, systemErrorCode } from '../../errors.js';
import { throwIfInterrupted } from '../interrupted.js';
import { Exchange, type Answer } from './exchange.js';
import { NO_PAYLOAD, type Payload } from './payload.js';
import type { S3Settings } from './settings.js';
import { queryText, signedHeaders } from './signature.js';

export interface S3Request {
  readonly method: 'GET' | 'HEAD' | 'PUT' | 'DELETE';
  /** Of the object, prefix included; '' for the bucket. */
  readonly path: string;
  readonly query?: Readonly<Record<string, string>>;
  readonly headers?: Readonly<Record<string, string>>;
  readonly payload?: Payload;
  readonly signal: AbortSignal | undefined;
  /** What the body of an answer may have. */
  readonly mostBytes?: number;
}

export interface S3ClientOptions {
  /** For tests: without a byte in either direction. */
  readonly idleMs?: number;
}

/** The store has said nothing that counts, or nothing at all. */
export class NoAnswer extends Error {
  constructor(
    message: string,
    /** Whether it may have carried out what it was asked for. */
    readonly mayBeDone: boolean,
    cause: unknown,
  ) {
    super(message, { cause });
    this.name = 'NoAnswer';
  }
}

const FIRST_WAIT_MS = 100;
const MOST_WAIT_MS = 10_000;
/** Lists of 1000 names, and errors. */
const TEXT_BYTES = 4 * 1024 * 1024;
/** The store is busy, or has lost a race that it will not lose again. */
const BUSY = new Set([408, 409, 425, 429, 500, 502, 503, 504, 509]);
/** After these the connection certainly never was. */
const NEVER_CONNECTED = new Set(['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'ENETUNREACH', 'EHOSTUNREACH']);

export class S3Client {
  readonly #settings: S3Settings;
  readonly #exchange: Exchange;
  readonly #host: string;
  readonly #base: string;
  /** Of the store's clock before ours, in ms, where that keeps it from believing us. */
  #clockOffsetMs = 0;

  constructor(settings: S3Settings, options: S3ClientOptions = {}) {
    this.#settings = settings;
    const { endpoint, ca, isPathStyle, bucket, uploadLimit, downloadLimit } = settings;
    const url = new URL(endpoint);
    if (!isPathStyle) url.hostname = `${bucket}.${url.hostname}`;
    this.#host = url.host;
    this.#base = isPathStyle ? `/${bucket}` : '';
    this.#exchange = new Exchange(url, ca, {
      ...{ idleMs: options.idleMs, upload: uploadLimit, download: downloadLimit },
    });
  }

  /**
   * @returns an answer that is none of the store's troubles, whatever its status
   * @throws NoAnswer, INTERRUPTED, and what finding keys throws
   */
  async send(request: S3Request): Promise<Answer> {
    const step = `${request.method} ${request.path}`;
    const untilMs = performance.now() + this.#settings.giveUpMs;
    let mayBeDone = false;
    for (let attempt = 0; ; attempt++) {
      throwIfInterrupted(request.signal, step);
      let trouble: unknown;
      let waitMs = Math.random() * Math.min(MOST_WAIT_MS, FIRST_WAIT_MS * 2 ** attempt);
      try {
        const answer = await this.#sendOnce(request);
        const why = this.#troubleOf(answer, attempt);
        if (why === undefined) return answer;
        trouble = new Error(why);
        waitMs = Math.max(
          waitMs,
          Math.min(MOST_WAIT_MS, 1000 * Number(answer.headers['retry-after'] ?? 0) || 0),
        );
        mayBeDone ||= answer.status >= 500 || answer.status === 408;
      } catch (error) {
        if (request.signal?.aborted === true) {
          if (request.method === 'PUT' || request.method === 'DELETE')
            throw new NoAnswer(`${step}: interrupted`, true, error);
          throwIfInterrupted(request.signal, step);
        }
        // Not a trouble of the store, but a mistake here.
        if (isCheckpointError(error) || error instanceof TypeError || error instanceof RangeError)
          throw error;
        trouble = error;
        mayBeDone ||= !NEVER_CONNECTED.has(systemErrorCode(error) ?? '');
      }
      if (performance.now() + waitMs > untilMs)
        throw new NoAnswer(`${step}: ${describeTrouble(trouble)}`, mayBeDone, trouble);
      await delay(waitMs, undefined, { signal: request.signal }).catch(() => undefined);
      if (request.signal?.aborted === true && mayBeDone && request.method !== 'GET')
        throw new NoAnswer(`${step}: interrupted`, true, trouble);
    }
  }

  close(): void {
    this.#exchange.close();
  }

  async #sendOnce(request: S3Request): Promise<Answer> {
    const { method, query = {}, payload = NO_PAYLOAD, signal, mostBytes = TEXT_BYTES } = request;
    const path = `${this.#base}/${request.path}`;
    const headers = signedHeaders(
      { method, host: this.#host, path, query, headers: request.headers ?? {}, bodySha256: payload.sha256 },
      await this.#settings.credentials.get(),
      this.#settings.region,
      new Date(Date.now() + this.#clockOffsetMs),
    );
    const text = queryText(query);
    return this.#exchange.send(
      { method, path: text === '' ? path : `${path}?${text}`, headers, payload, signal },
      Math.max(mostBytes, TEXT_BYTES),
    );
  }

  /** @returns why it is to be tried again; undefined when it is not */
  #troubleOf({ status, headers, body }: Answer, attempt: number): string | undefined {
    const code = errorCodeOf(body);
    if (BUSY.has(status)) return `${status} ${code}`.trim();
    // A store may answer a head with nothing but the status.
    const isSkewed = code === 'RequestTimeTooSkewed' || (status === 403 && code === '' && attempt === 0);
    const storeMs = Date.parse(headers.date ?? '');
    if (isSkewed && !Number.isNaN(storeMs) && Math.abs(storeMs - Date.now() - this.#clockOffsetMs) > 60_000) {
      this.#clockOffsetMs = storeMs - Date.now();
      return 'its clock shows another time';
    }
    if (code === 'ExpiredToken' && attempt === 0) {
      this.#settings.credentials.forget();
      return 'the keys have expired';
    }
    return code === 'RequestTimeout' ? code : undefined;
  }
}

/** The code of an error as S3 writes it; empty when there is none. */
export function errorCodeOf(body: Buffer): string {
  return /<Code>([A-Za-z0-9]+)<\/Code>/.exec(body.subarray(0, 4096).toString('latin1'))?.[1] ?? '';
}

function describeTrouble(trouble: unknown): string {
  const errno = systemErrorCode(trouble);
  const text = describeError(trouble);
  return errno === undefined || text.includes(errno) ? text : `${errno} ${text}`.trim();
}
