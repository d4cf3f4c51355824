/** One HTTP request and its answer, within a time limit. */

import * as http from 'node:http';
import * as https from 'node:https';
import { once } from 'node:events';
import { rootCertificates } from 'node:tls';

import { Pace } from './pace.js';
import type { Payload } from './payload.js';

export interface Answer {
  readonly status: number;
  readonly headers: http.IncomingHttpHeaders;
  readonly body: Buffer;
}

export interface Sending {
  readonly method: string;
  /** With the query. */
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly payload: Payload;
  readonly signal: AbortSignal | undefined;
}

/** Without a byte in either direction. */
const IDLE_MS = 30_000;
/** For a request as a whole, beside the time that its bytes may take. */
const REQUEST_MS = 60_000;
/** A flow that is slower than this, for minutes, is as good as none. */
const SLOWEST_BYTES_PER_MS = 32;
const MAX_CONNECTIONS = 16;
const CHUNK_BYTES = 64 * 1024;

export interface ExchangeLimits {
  readonly idleMs?: number | undefined;
  readonly upload?: number | undefined;
  readonly download?: number | undefined;
}

export class Exchange {
  readonly #endpoint: URL;
  readonly #agent: http.Agent;
  readonly #idleMs: number;
  readonly #upload: Pace;
  readonly #download: Pace;

  constructor(endpoint: URL, ca: Buffer | undefined, limits: ExchangeLimits) {
    this.#endpoint = endpoint;
    const options = { keepAlive: true, maxSockets: MAX_CONNECTIONS };
    this.#agent =
      endpoint.protocol === 'https:'
        ? new https.Agent({
            ...options,
            ...(ca === undefined ? {} : { ca: [...rootCertificates, ca.toString('latin1')] }),
          })
        : new http.Agent(options);
    this.#idleMs = limits.idleMs ?? IDLE_MS;
    this.#upload = new Pace(limits.upload);
    this.#download = new Pace(limits.download);
  }

  /**
   * @param mostBytes of an answer
   * @throws errors of the connection; what the signal is aborted with
   */
  async send(sending: Sending, mostBytes: number): Promise<Answer> {
    const { method, path, headers, payload } = sending;
    const { protocol, hostname, port } = this.#endpoint;
    const limitMs =
      REQUEST_MS +
      2 * (this.#upload.leastMs(payload.sizeBytes) + this.#download.leastMs(mostBytes)) +
      (payload.sizeBytes + mostBytes) / SLOWEST_BYTES_PER_MS;
    const limit = AbortSignal.timeout(Math.ceil(limitMs));
    const signal = sending.signal === undefined ? limit : AbortSignal.any([sending.signal, limit]);
    signal.throwIfAborted();
    const request = (protocol === 'https:' ? https : http).request({
      ...{ agent: this.#agent, hostname: hostname.replace(/^\[|\]$/g, ''), method, path, signal },
      ...(port === '' ? {} : { port }),
      headers: { ...headers, 'content-length': String(payload.sizeBytes) },
    });
    request.setTimeout(this.#idleMs, () => request.destroy(new Error(`nothing came for ${this.#idleMs} ms`)));
    const answered = once(request, 'response') as Promise<[http.IncomingMessage]>;
    const sent = this.#sendBody(request, payload, signal);
    // An answer may come before the body is sent; then what becomes of the rest does not matter.
    sent.catch((error: unknown) => request.destroy(error as Error));
    try {
      const [response] = await answered;
      const body = await this.#bodyOf(response, mostBytes, signal);
      if (!request.writableFinished) request.destroy();
      return { status: response.statusCode ?? 0, headers: response.headers, body };
    } catch (error) {
      request.destroy();
      throw error;
    }
  }

  close(): void {
    this.#agent.destroy();
  }

  async #sendBody(request: http.ClientRequest, payload: Payload, signal: AbortSignal): Promise<void> {
    for await (const chunk of payload.chunks()) {
      for (let at = 0; at < chunk.length; at += CHUNK_BYTES) {
        const part = chunk.subarray(at, at + CHUNK_BYTES);
        await this.#upload.wait(part.length, signal);
        if (request.destroyed) return;
        if (!request.write(part)) await drained(request);
      }
    }
    request.end();
  }

  /** @throws when the connection ends before all of it is there */
  async #bodyOf(response: http.IncomingMessage, mostBytes: number, signal: AbortSignal): Promise<Buffer> {
    const chunks: Buffer[] = [];
    let length = 0;
    for await (const chunk of response as AsyncIterable<Buffer>) {
      length += chunk.length;
      if (length > mostBytes) throw new Error('the answer is longer than what was asked for');
      await this.#download.wait(chunk.length, signal);
      chunks.push(chunk);
    }
    if (!response.complete) throw new Error('the connection ended in the middle of an answer');
    return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
  }
}

/** Or closed. */
function drained(request: http.ClientRequest): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      request.off('drain', done).off('close', done);
      resolve();
    };
    request.on('drain', done).on('close', done);
  });
}
