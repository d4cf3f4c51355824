/**
 * One field of an option's value, in either of its two forms: `key=value,...` or JSON. Names with a dot lead into nested
 * objects. What is no text in JSON is given as QEMU would write it: `true` as `on`.
 */

import { parseJson } from '../../../src/records/json-text.js';
import type { Json, JsonObject } from '../../../src/types.js';
import { valueOf, withoutValueOf, withValueOf } from './command-line.js';

/** @param implied the key of a first part that has none. @returns undefined where there is no such field */
export function fieldOf(value: string, key: string, implied?: string): string | undefined {
  if (!value.startsWith('{')) return valueOf(value, key, implied);
  let found: Json | undefined = parsed(value);
  for (const part of key.split('.')) found = isObject(found) ? found[part] : undefined;
  if (typeof found === 'boolean') return found ? 'on' : 'off';
  if (typeof found === 'number') return String(found);
  return typeof found === 'string' ? found : undefined;
}

/** The value with the field set to a text, in the form that it has. */
export function withField(value: string, key: string, to: string): string {
  if (!value.startsWith('{')) return withValueOf(value, key, to);
  const whole = parsed(value);
  return isObject(whole) ? JSON.stringify(withNested(whole, key.split('.'), to)) : value;
}

/** The value without a field that is not nested. */
export function withoutField(value: string, key: string): string {
  if (!value.startsWith('{')) return withoutValueOf(value, key);
  const whole = parsed(value);
  if (!isObject(whole)) return value;
  return JSON.stringify(Object.fromEntries(Object.entries(whole).filter(([name]) => name !== key)));
}

/** Whether a switch is on: `key`, `key=on`, `key=yes`. */
export function isOn(value: string, key: string): boolean {
  if (!value.startsWith('{') && value.split(',').includes(key)) return true;
  return ['on', 'yes', 'true', 'y'].includes(fieldOf(value, key) ?? '');
}

function withNested(into: JsonObject, [key = '', ...rest]: readonly string[], to: string): JsonObject {
  const inner = into[key];
  return { ...into, [key]: rest.length === 0 ? to : withNested(isObject(inner) ? inner : {}, rest, to) };
}

function parsed(text: string): Json | undefined {
  try {
    return parseJson(text);
  } catch {
    return undefined;
  }
}

function isObject(value: Json | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
