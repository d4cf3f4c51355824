/**
 * A fence is an object that takes a name so that nothing else gets it: whoever still has a request under way
 * that creates an object of this name, if there is none, has lost. For everybody else there is no object then.
 *
 * A list shows names and lengths only, so a fence has a length that no object of a repository has but by
 * chance, and is known by its metadata.
 */

import { randomBytes } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';

import { payloadOf, type Payload } from './payload.js';

/** Shorter than any sealed JSON. */
export const FENCE_BYTES = 61;
const FENCE_HEADER = 'x-amz-meta-cairn-fence';
const TOKEN_HEADER = 'x-amz-meta-cairn-token';

/** Each is another one, so that a request which expects one fence does not take a later one for it. */
export function newFence(): { readonly payload: Payload; readonly headers: Record<string, string> } {
  const text = `cairn fence ${randomBytes(24).toString('hex')}\n`;
  const payload = payloadOf(new Uint8Array(Buffer.from(text)));
  return { payload, headers: { [FENCE_HEADER]: '1', ...newToken() } };
}

export function isFence(headers: IncomingHttpHeaders): boolean {
  return headers[FENCE_HEADER] !== undefined;
}

/** By which a call knows its own object again, when the answer to its first try was lost. */
export function newToken(): Record<string, string> {
  return { [TOKEN_HEADER]: randomBytes(16).toString('hex') };
}

export function hasToken(headers: IncomingHttpHeaders, token: Readonly<Record<string, string>>): boolean {
  return headers[TOKEN_HEADER] !== undefined && headers[TOKEN_HEADER] === token[TOKEN_HEADER];
}
