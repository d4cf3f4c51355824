/**
 * Small records as text: one line of JSON and one line with the SHA-256 of the first (docs/format.md, sealed
 * JSON).
 *
 *     {"format":"cairn-repository","version":1,...}\n
 *     <64 lower-case hex digits>\n
 */

import { createHash } from 'node:crypto';

import type { JsonObject } from '../types.js';
import { damaged } from '../records/damage.js';
import { parseJson } from '../records/json-text.js';

/** Far more than any manifest needs; keeps a hostile file from filling memory. */
export const MAX_SEALED_BYTES = 64 * 1024 * 1024;
const SEAL_BYTES = 65;

export function sealJson(value: JsonObject): Uint8Array {
  const line = Buffer.from(`${JSON.stringify(value)}\n`, 'utf8');
  return new Uint8Array(Buffer.concat([line, Buffer.from(`${sha256Hex(line.subarray(0, -1))}\n`, 'latin1')]));
}

/** @throws REPO_DAMAGED */
export function openSealedJson(key: string, bytes: Uint8Array): JsonObject {
  const lineEnd = bytes.length - SEAL_BYTES - 1;
  const line = bytes.subarray(0, Math.max(0, lineEnd));
  const seal = `\n${sha256Hex(line)}\n`;
  if (lineEnd < 2 || Buffer.from(bytes.subarray(lineEnd)).toString('latin1') !== seal) {
    throw damaged(key, 'checksum does not match');
  }
  try {
    const value: unknown = parseJson(Buffer.from(line).toString('utf8'));
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as JsonObject;
  } catch {
    // The checksum is right, so this was written so; reported below like any other wrong content.
  }
  throw damaged(key, 'not a JSON object');
}

export function sha256Hex(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
