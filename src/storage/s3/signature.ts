/**
 * Signs requests to an object store: AWS Signature Version 4, with all of it in headers.
 * Source: AWS General Reference, "Signature Version 4"; Amazon S3 API Reference, "Authenticating Requests".
 */

import { createHash, createHmac } from 'node:crypto';

export interface Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  /** Of keys that hold for a while. */
  readonly sessionToken?: string | undefined;
  /** Milliseconds since 1970, on this host's clock; undefined for keys that hold until somebody changes them. */
  readonly expiresMs?: number | undefined;
}

export interface RequestToSign {
  readonly method: string;
  readonly host: string;
  /** From "/" on; its characters need no escape. */
  readonly path: string;
  readonly query: Readonly<Record<string, string>>;
  /** Names in lower case. All of them are signed. */
  readonly headers: Readonly<Record<string, string>>;
  /** SHA-256 of the body, in hex. */
  readonly bodySha256: string;
}

export const EMPTY_SHA256 = createHash('sha256').digest('hex');

/** @returns all headers of the request, those that were given included */
export function signedHeaders(
  request: RequestToSign,
  credentials: Credentials,
  region: string,
  now: Date,
): Record<string, string> {
  const time = now.toISOString().replace(/[:-]|\.\d{3}/g, '');
  const scope = `${time.slice(0, 8)}/${region}/s3/aws4_request`;
  const headers: Record<string, string> = {
    ...request.headers,
    host: request.host,
    'x-amz-content-sha256': request.bodySha256,
    'x-amz-date': time,
    ...(credentials.sessionToken === undefined ? {} : { 'x-amz-security-token': credentials.sessionToken }),
  };
  const names = Object.keys(headers).sort();
  const canonical = [
    request.method,
    request.path,
    queryText(request.query),
    ...names.map((name) => `${name}:${headers[name]!.trim()}`),
    '',
    names.join(';'),
    request.bodySha256,
  ].join('\n');
  const toSign = `AWS4-HMAC-SHA256\n${time}\n${scope}\n${createHash('sha256').update(canonical).digest('hex')}`;
  const key = scope
    .split('/')
    .reduce<string | Buffer>((last, part) => hmac(last, part), `AWS4${credentials.secretAccessKey}`);
  const signature = hmac(key, toSign).toString('hex');
  return {
    ...headers,
    authorization: `AWS4-HMAC-SHA256 Credential=${credentials.accessKeyId}/${scope},SignedHeaders=${names.join(';')},Signature=${signature}`,
  };
}

/** As it is signed and sent: by name, everything else but unreserved characters escaped. */
export function queryText(query: Readonly<Record<string, string>>): string {
  return Object.keys(query)
    .sort()
    .map((name) => `${escape(name)}=${escape(query[name]!)}`)
    .join('&');
}

function escape(text: string): string {
  return encodeURIComponent(text).replace(
    /[!'()*]/g,
    (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

function hmac(key: string | Buffer, text: string): Buffer {
  return createHmac('sha256', key).update(text).digest();
}
