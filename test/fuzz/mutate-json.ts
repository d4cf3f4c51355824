/** Changes JSON by its structure: values of other types, huge and deep ones, fields that are missing or twice there. */

import type { Json, JsonObject } from '../../src/types.js';
import { mutateBytes } from './mutate-bytes.js';
import type { Mutate, Random } from './target.js';

/** Stands for what `JSON.stringify` cannot write: it is put in afterwards. */
const DEEP_LIST = '@deep-list';
const DEEP_OBJECT = '@deep-object';
const HUGE_NUMBER = '@huge-number';
const LONG_TEXT = 'x'.repeat(5000);

const ODD_VALUES: readonly Json[] = [
  ...[null, true, false, 0, 1, -1, 0.5, 4096, 2 ** 31, 2 ** 32, 2 ** 32 - 64, 2 ** 40, 2 ** 44, 2 ** 53],
  ...[
    1e300,
    -1e300,
    '',
    ' ',
    '0',
    '-1',
    '1e999',
    LONG_TEXT,
    '\0',
    '../..',
    '/',
    'a\nb',
    '\ud800',
    '\u001b[2J',
  ],
  ...[DEEP_LIST, DEEP_OBJECT, HUGE_NUMBER, [], {}, [null], [[]], [{}], [''], { a: 1 }],
  // What JavaScript would call when it makes a text or a number of an object.
  { toString: 1, valueOf: 1 },
  { length: 2 ** 32 },
  JSON.parse('{"__proto__":{"a":1}}') as JsonObject,
];
const ODD_NAMES = ['__proto__', 'constructor', 'toString', 'length', '', '0', LONG_TEXT];
const DEPTHS = [20, 300, 2000, 60_000];

/** A place in a value: where it is, and in what. */
interface Place {
  readonly holder: Record<string, Json> | Json[];
  readonly key: string;
}

/** For an input that is JSON; one that is not is changed as bytes. */
export const mutateJson: Mutate = (input, random, others) => {
  if (random(6) === 0) return mutateBytes(input, random, others);
  try {
    const root = { value: JSON.parse(Buffer.from(input).toString('utf8')) as Json };
    for (let left = 1 + random(3) * random(2); left > 0; left--) change(root, random);
    return Buffer.from(withWonders(JSON.stringify(root.value), random));
  } catch {
    // It is no JSON, or too deep for `JSON.stringify`.
    return mutateBytes(input, random, others);
  }
};

function change(root: { value: Json }, random: Random): void {
  const places: Place[] = [];
  collect(root, places);
  const { holder, key } = places[random(places.length)]!;
  const into = holder as Record<string, Json>;
  const other = places[random(places.length)]!;
  const name = ODD_NAMES[random(ODD_NAMES.length)]!;
  switch (random(8)) {
    case 0:
      if (holder !== (root as unknown)) remove(holder, key);
      break;
    case 1:
      into[key] = structuredClone((other.holder as Record<string, Json>)[other.key]!);
      break;
    case 2:
      if (Array.isArray(holder)) holder.push(...new Array<Json>(1 + random(300)).fill(into[key]!));
      else if (holder !== (root as unknown)) into[name] = into[key]!;
      break;
    case 3:
      into[key] = near(into[key]!, random);
      break;
    default:
      into[key] = structuredClone(ODD_VALUES[random(ODD_VALUES.length)]!);
  }
}

/** Not recursive: what was put in may be deep. */
function collect(root: Record<string, Json>, places: Place[]): void {
  const waiting: (Record<string, Json> | Json[])[] = [root];
  for (let holder = waiting.pop(); holder !== undefined; holder = waiting.pop()) {
    for (const key of Object.keys(holder)) {
      places.push({ holder, key });
      const value = (holder as Record<string, Json>)[key];
      if (typeof value === 'object' && value !== null) waiting.push(value as Record<string, Json>);
    }
  }
}

function remove(holder: Place['holder'], key: string): void {
  if (Array.isArray(holder)) holder.splice(Number(key), 1);
  else Reflect.deleteProperty(holder, key);
}

/** A value of the same type that is almost the same. */
function near(value: Json, random: Random): Json {
  if (typeof value === 'number') return value + random(5) - 2;
  if (typeof value === 'boolean') return !value;
  if (typeof value !== 'string') return value;
  const at = random(value.length + 1);
  const odd = ['', 'a', '0', '.', '/', '"', "'", ',', '=', '{', ' ', '\0', 'é', '-'][random(14)]!;
  return value.slice(0, at) + odd + value.slice(at + random(2));
}

function withWonders(text: string, random: Random): string {
  const depth = DEPTHS[random(DEPTHS.length)]!;
  return text
    .replaceAll(`"${DEEP_LIST}"`, () => '['.repeat(depth) + ']'.repeat(depth))
    .replaceAll(`"${DEEP_OBJECT}"`, () => '{"a":'.repeat(depth) + '1' + '}'.repeat(depth))
    .replaceAll(`"${HUGE_NUMBER}"`, '1e999');
}
