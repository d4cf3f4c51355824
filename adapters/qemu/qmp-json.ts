/** Reading replies of QEMU without trusting their shape, depth or size. */

import type { Json, JsonObject } from '../../src/types.js';

/**
 * No reply that is asked for comes near it. The longest is that of query-block, with about 250 bytes for each
 * internal snapshot and 700 for each image of a chain.
 */
export const MAX_REPLY_BYTES = 16 << 20;
/** What QEMU's own reader allows (qobject/json-parser.c). A chain of images nests one object in the other. */
const MAX_NESTING = 1024;
/**
 * An empty object takes 2 bytes of text and tens of bytes of memory: this many values take about 100 MiB, and a
 * reply of the longest length that holds anything has fewer.
 */
const MAX_VALUES = 1 << 20;

const QUOTE = 0x22;
const COMMA = 0x2c;
const BACKSLASH = 0x5c;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;

/**
 * The value that a monitor sent as text.
 * @throws SyntaxError for what is no JSON, RangeError for what is nested too deeply or has too many values
 */
export function parseReply(text: string): Json {
  checkShape(text);
  return JSON.parse(text) as Json;
}

export function asObject(value: Json | undefined): JsonObject {
  return isJsonObject(value) ? value : {};
}

export function asArray(value: Json | undefined): readonly JsonObject[] {
  return Array.isArray(value) ? (value as readonly Json[]).filter(isJsonObject) : [];
}

/** Empty unless it is a string. */
export function asText(value: Json | undefined): string {
  return typeof value === 'string' ? value : '';
}

/** 0 unless it is a finite number: JSON has texts for numbers that are none, such as 1e999. */
export function asNumber(value: Json | undefined): number {
  return typeof value === 'number' && Number.isFinite(value) ? value : 0;
}

export function isJsonObject(value: Json | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** A text of QEMU as it may stand in an error. */
export function clipped(text: string, maxLength: number): string {
  return text.length <= maxLength ? text : `${text.slice(0, maxLength)}...`;
}

/** Counts before anything is made of the text, since what JSON.parse makes is many times as large. */
function checkShape(text: string): void {
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
        if (++depth > MAX_NESTING) throw new RangeError(`JSON nested deeper than ${MAX_NESTING} levels`);
        break;
      case CLOSE_BRACKET:
      case CLOSE_BRACE:
        depth--;
        break;
      case COMMA:
        values++;
        break;
    }
    if (values > MAX_VALUES) throw new RangeError(`JSON of more than ${MAX_VALUES} values`);
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
