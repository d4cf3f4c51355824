/**
 * An object store in this process that speaks as much of S3 as Cairn needs, and can be told to misbehave: to break
 * connections before or after it has done what was asked, to be busy, to cut answers short, to arrive late, to ignore
 * conditions. It believes every signature.
 */

import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export type StoreFault =
  /** The connection breaks, and nothing is done. */
  | 'reset'
  /** It is done, and the connection breaks. */
  | 'reset-after'
  /** 503, and nothing is done. */
  | 'busy'
  /** It is done, and the answer is 500. */
  | 'error-after'
  /** The answer ends in its middle. */
  | 'truncated'
  /** The connection breaks, and it is done once `release` is called. */
  | 'late';

interface Kept {
  readonly body: Buffer;
  readonly etag: string;
  readonly meta: Readonly<Record<string, string>>;
}

export class FakeObjectStore {
  readonly objects = new Map<string, Kept>();
  /** Asked for each request, by "METHOD NAME". */
  fault: (what: string) => StoreFault | undefined = () => undefined;
  /** Answers as if conditions had been met. */
  ignoresConditions = false;
  /** Added to its clock. */
  clockAheadMs = 0;
  readonly requests: string[] = [];
  readonly #server: Server;
  #late: (() => void)[] = [];

  private constructor() {
    this.#server = createServer((request, response) => {
      this.#answer(request, response).catch((error: unknown) => response.destroy(error as Error));
    });
  }

  static async start(): Promise<FakeObjectStore> {
    const store = new FakeObjectStore();
    await new Promise<void>((resolve) => store.#server.listen(0, '127.0.0.1', resolve));
    return store;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** What was late arrives. */
  release(): void {
    for (const arrive of this.#late.splice(0)) arrive();
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url!, 'http://store');
    const name = decodeURIComponent(url.pathname).split('/').slice(2).join('/');
    const what = `${request.method!} ${name}`;
    this.requests.push(what);
    const fault = this.fault(what);
    if (fault === 'reset') {
      request.socket.destroy();
      return;
    }
    const chunks: Buffer[] = [];
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
    const body = Buffer.concat(chunks);
    if (fault === 'busy') {
      this.#end(request, response, 503, {}, errorText('SlowDown'));
      return;
    }
    if (fault === 'late') {
      this.#late.push(() => this.#carryOut(request, url, name, body));
      request.socket.destroy();
      return;
    }
    const { status, headers = {}, content = '' } = this.#carryOut(request, url, name, body);
    if (fault === 'reset-after') {
      request.socket.destroy();
      return;
    }
    if (fault === 'error-after') {
      this.#end(request, response, 500, {}, errorText('InternalError'));
      return;
    }
    if (fault === 'truncated') {
      response.writeHead(status, { ...headers, 'content-length': content.length + 1 });
      response.write(content);
      response.socket?.end();
      return;
    }
    this.#end(request, response, status, headers, content);
  }

  #end(
    request: IncomingMessage,
    response: ServerResponse,
    status: number,
    headers: Record<string, string>,
    content: Buffer | string,
  ): void {
    const date = new Date(Date.now() + this.clockAheadMs).toUTCString();
    response.writeHead(status, { 'content-length': Buffer.byteLength(content), date, ...headers });
    response.end(request.method === 'HEAD' ? undefined : content);
  }

  #carryOut(
    request: IncomingMessage,
    url: URL,
    name: string,
    body: Buffer,
  ): {
    readonly status: number;
    readonly headers?: Record<string, string>;
    readonly content?: Buffer | string;
  } {
    if (name === '' && request.method === 'GET')
      return { status: 200, content: this.#list(url.searchParams) };
    const kept = this.objects.get(name);
    if (request.method === 'DELETE') {
      this.objects.delete(name);
      return { status: 204 };
    }
    if (request.method === 'PUT') {
      const { 'if-none-match': ifNone, 'if-match': ifMatch } = request.headers;
      const isMet =
        (ifNone !== '*' || kept === undefined) && (ifMatch === undefined || ifMatch === kept?.etag);
      if (!isMet && !this.ignoresConditions) return { status: 412, content: errorText('PreconditionFailed') };
      const meta = Object.entries(request.headers).filter(([header]) => header.startsWith('x-amz-meta-'));
      const etag = `"${createHash('md5').update(body).digest('hex')}"`;
      this.objects.set(name, { body, etag, meta: Object.fromEntries(meta) as Record<string, string> });
      return { status: 200, headers: { etag } };
    }
    if (kept === undefined) return { status: 404, content: errorText('NoSuchKey') };
    const headers = { etag: kept.etag, ...kept.meta };
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    const size = kept.body.length;
    if (request.method === 'HEAD')
      return { status: 200, headers: { ...headers, 'content-length': String(size) } };
    if (range === null) return { status: 200, headers, content: kept.body };
    const [start, end] = [Number(range[1]), Math.min(Number(range[2]) + 1, size)];
    if (start >= size) return { status: 416, headers: { 'content-range': `bytes */${size}` } };
    const place = { 'content-range': `bytes ${start}-${end - 1}/${size}` };
    return { status: 206, headers: { ...headers, ...place }, content: kept.body.subarray(start, end) };
  }

  /** Three names an answer, so that lists have more than one. */
  #list(query: URLSearchParams): string {
    const from = query.get('continuation-token') ?? '';
    const names = [...this.objects.keys()]
      .filter((name) => name.startsWith(query.get('prefix') ?? ''))
      .sort();
    const left = names.filter((name) => name > from);
    const contents = left.slice(0, 3).map((name) => {
      return `<Contents><Key>${name}</Key><Size>${this.objects.get(name)!.body.length}</Size></Contents>`;
    });
    const next = left.length > 3 ? `<NextContinuationToken>${left[2]!}</NextContinuationToken>` : '';
    return `<?xml version="1.0"?><ListBucketResult>${contents.join('')}${next}</ListBucketResult>`;
  }
}

function errorText(code: string): string {
  return `<?xml version="1.0"?><Error><Code>${code}</Code></Error>`;
}
