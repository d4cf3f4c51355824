/**
 * Reads fields of a JSON record that is not trusted. Every failure is REPO_DAMAGED and names object and
 * field.
 */

import type { Json, JsonObject } from '../types.js';
import { damaged } from './damage.js';

export class JsonFields {
  constructor(
    readonly key: string,
    private readonly value: JsonObject,
    private readonly path = '',
  ) {}

  /** False for a field of a later version than the record's. */
  has(name: string): boolean {
    return this.value[name] !== undefined;
  }

  text(name: string, maxLength = Infinity): string {
    const value = this.value[name];
    if (typeof value !== 'string') return this.wrong(name, 'a text');
    return value.length <= maxLength ? value : this.wrong(name, `at most ${maxLength} characters long`);
  }

  matching(name: string, pattern: RegExp): string {
    const value = this.text(name);
    return pattern.test(value) ? value : this.wrong(name, `like ${pattern.source}`);
  }

  textOrNull(name: string): string | null {
    return this.value[name] === null ? null : this.text(name);
  }

  oneOf<T extends string>(name: string, allowed: readonly T[]): T {
    const found = allowed.find((one) => one === this.value[name]);
    return found ?? this.wrong(name, `one of ${allowed.join(', ')}`);
  }

  /** A whole number from 0 (or `min`) to `max`. */
  count(name: string, max = Number.MAX_SAFE_INTEGER, min = 0): number {
    const value = this.value[name];
    if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) return value;
    return this.wrong(name, `a whole number from ${min} to ${max}`);
  }

  object(name: string): JsonObject {
    const value = this.value[name];
    return isObject(value) ? value : this.wrong(name, 'an object');
  }

  /** All fields but those named. */
  rest(names: readonly string[]): JsonObject {
    return Object.fromEntries(Object.entries(this.value).filter(([name]) => !names.includes(name)));
  }

  fields(name: string): JsonFields {
    return new JsonFields(this.key, this.object(name), `${this.path}${name}.`);
  }

  fieldsOrNull(name: string): JsonFields | null {
    return this.value[name] === null ? null : this.fields(name);
  }

  texts(name: string): readonly string[] {
    const all = this.array(name);
    return all.every((one) => typeof one === 'string') ? all : this.wrong(name, 'a list of texts');
  }

  list<T>(name: string, read: (fields: JsonFields) => T): readonly T[] {
    return this.array(name).map((one, i) => {
      if (!isObject(one)) return this.wrong(`${name}[${i}]`, 'an object');
      return read(new JsonFields(this.key, one, `${this.path}${name}[${i}].`));
    });
  }

  wrong(name: string, expected: string): never {
    throw damaged(this.key, `field ${this.path}${name} is not ${expected}`);
  }

  private array(name: string): readonly Json[] {
    const value: Json | undefined = this.value[name];
    return Array.isArray(value) ? (value as readonly Json[]) : this.wrong(name, 'a list');
  }
}

function isObject(value: Json | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
