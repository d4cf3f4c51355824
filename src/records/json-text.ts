/**
 * JSON that is not trusted, parsed only up to a depth and a number of values. `JSON.parse` takes any depth; what
 * walks over its result afterwards, `JSON.stringify` among it, runs out of stack.
 */

import type { Json } from '../types.js';

export interface JsonLimits {
  /** Lists and objects, one in the other. */
  readonly maxDepth: number;
  /** Counted by opening brackets and commas: lists and objects, and what is in them. */
  readonly maxValues: number;
}

/**
 * For what is written here or by a hypervisor. The deepest is QEMU's description of a disk: one object in the
 * other for each image of a backing chain, of which libvirt takes 200. Who reads it bounds its length.
 */
const RECORD_LIMITS: JsonLimits = { maxDepth: 500, maxValues: Infinity };

const QUOTE = 0x22;
const COMMA = 0x2c;
const BACKSLASH = 0x5c;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;

/** @throws SyntaxError for what is no JSON, RangeError for what is beyond the limits */
export function parseJson(text: string, limits = RECORD_LIMITS): Json {
  checkShape(text, limits);
  return JSON.parse(text) as Json;
}

/** Counts before anything is made of the text, since what JSON.parse makes is many times as large. */
function checkShape(text: string, { maxDepth, maxValues }: JsonLimits): void {
  let depth = 0;
  let values = 1;
  for (let at = 0; at < text.length; at++) {
    switch (text.charCodeAt(at)) {
      case QUOTE:
        at = endOfString(text, at);
        break;
      case OPEN_BRACKET:
      case OPEN_BRACE:
        values++;
        if (++depth > maxDepth) throw new RangeError(`JSON nested deeper than ${maxDepth} levels`);
        break;
      case CLOSE_BRACKET:
      case CLOSE_BRACE:
        depth--;
        break;
      case COMMA:
        values++;
        break;
    }
    if (values > maxValues) throw new RangeError(`JSON of more than ${maxValues} values`);
  }
}

/** @returns index of the closing quote; the end of the text when there is none */
function endOfString(text: string, from: number): number {
  for (let at = from + 1; at < text.length; at++) {
    const unit = text.charCodeAt(at);
    if (unit === QUOTE) return at;
    if (unit === BACKSLASH) at++;
  }
  return text.length;
}
