/**
 * JSON that is not trusted, parsed only up to a depth. `JSON.parse` takes any depth; what walks over its result
 * afterwards, `JSON.stringify` among it, runs out of stack.
 */

import type { Json } from '../types.js';

/**
 * Deeper than anything that is written here or by a hypervisor. The deepest is QEMU's description of a disk: one
 * object in the other for each image of a backing chain, of which libvirt takes 200.
 */
const MAX_DEPTH = 500;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPENING: ReadonlySet<number> = new Set([0x5b, 0x7b]);
const CLOSING: ReadonlySet<number> = new Set([0x5d, 0x7d]);

/** @throws SyntaxError for what is no JSON, or too deep */
export function parseJson(text: string): Json {
  if (isTooDeep(text)) throw new SyntaxError(`JSON is nested deeper than ${MAX_DEPTH} levels`);
  return JSON.parse(text) as Json;
}

function isTooDeep(text: string): boolean {
  let depth = 0;
  let isInText = false;
  for (let at = 0; at < text.length; at++) {
    const char = text.charCodeAt(at);
    if (isInText) {
      if (char === BACKSLASH) at++;
      else if (char === QUOTE) isInText = false;
    } else if (char === QUOTE) isInText = true;
    else if (OPENING.has(char) && ++depth > MAX_DEPTH) return true;
    else if (CLOSING.has(char)) depth--;
  }
  return false;
}
