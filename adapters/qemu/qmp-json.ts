/** Reading replies of QEMU without trusting their shape, depth or size. */

import { parseJson } from '../../src/records/json-text.js';
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

/**
 * The value that a monitor sent as text.
 * @throws SyntaxError for what is no JSON, RangeError for what is nested too deeply or has too many values
 */
export function parseReply(text: string): Json {
  return parseJson(text, { maxDepth: MAX_NESTING, maxValues: MAX_VALUES });
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
