/** Changes bytes without knowing what they mean: bits, numbers of all widths and orders, pieces. */

import type { Mutate, Random } from './target.js';

/** What lengths, counts and offsets go wrong with. */
const ODD_NUMBERS = [
  ...[0, 1, 2, 3, 4, 7, 8, 16, 64, 127, 128, 255, 256, 4095, 4096, 4097, 65535, 65536],
  ...[2 ** 20, 2 ** 24, 2 ** 30, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 4096, 2 ** 32 - 1, 2 ** 32],
  ...[2 ** 40, 2 ** 46, 2 ** 52, 2 ** 53 - 1],
];
const ODD_BYTES = [0, 1, 0x7f, 0x80, 0xff, 0x20, 0x22, 0x2c, 0x3d, 0x5b, 0x5c, 0x7b];
const MAX_PIECE_BYTES = 64;
/** Inputs stay small: a longer one is slower and says no more. */
const MAX_INPUT_BYTES = 1 << 20;

type Step = (bytes: Buffer, random: Random, others: readonly Uint8Array[]) => Buffer;

const flipBit: Step = (bytes, random) => {
  if (bytes.length > 0) bytes[random(bytes.length)]! ^= 1 << random(8);
  return bytes;
};

const setByte: Step = (bytes, random) => {
  if (bytes.length > 0) bytes[random(bytes.length)] = ODD_BYTES[random(ODD_BYTES.length)]!;
  return bytes;
};

const setNumber: Step = (bytes, random) => {
  const width = [2, 4, 8][random(3)]!;
  if (bytes.length < width) return bytes;
  const at = random(bytes.length - width + 1);
  const odd = random(3) === 0 ? bytes.length + random(5) - 2 : ODD_NUMBERS[random(ODD_NUMBERS.length)]!;
  const value = BigInt.asUintN(width * 8, BigInt(odd));
  const whole = Buffer.alloc(8);
  if (random(2) === 0) {
    whole.writeBigUInt64LE(value);
    whole.copy(bytes, at, 0, width);
  } else {
    whole.writeBigUInt64BE(value);
    whole.copy(bytes, at, 8 - width);
  }
  return bytes;
};

const nudge: Step = (bytes, random) => {
  if (bytes.length > 0) bytes[random(bytes.length)]! += random(9) - 4;
  return bytes;
};

const cutOut: Step = (bytes, random) => {
  const { from, to } = pieceOf(bytes, random);
  return Buffer.concat([bytes.subarray(0, from), bytes.subarray(to)]);
};

const repeat: Step = (bytes, random) => {
  const { from, to } = pieceOf(bytes, random);
  const copies = new Array<Buffer>(1 + random(3)).fill(bytes.subarray(from, to));
  return Buffer.concat([bytes.subarray(0, to), ...copies, bytes.subarray(to)]);
};

const insert: Step = (bytes, random) => {
  const at = random(bytes.length + 1);
  const fresh = Buffer.from(Array.from({ length: 1 + random(8) }, () => random(256)));
  return Buffer.concat([bytes.subarray(0, at), fresh, bytes.subarray(at)]);
};

const splice: Step = (bytes, random, others) => {
  const other = others[random(others.length)] ?? bytes;
  const { from, to } = pieceOf(other, random);
  const at = random(bytes.length + 1);
  const replaced = random(2) === 0 ? to - from : 0;
  return Buffer.concat([bytes.subarray(0, at), other.subarray(from, to), bytes.subarray(at + replaced)]);
};

const cutOff: Step = (bytes, random) => bytes.subarray(0, random(bytes.length + 1));

/** Digits in a text: what JSON, XML and command lines have for a number. */
const setDigits: Step = (bytes, random) => {
  const found = [...bytes.toString('latin1').matchAll(/\d+/g)];
  const match = found[random(Math.max(1, found.length))];
  if (match === undefined) return bytes;
  const odd = ODD_NUMBERS[random(ODD_NUMBERS.length)]!;
  const text = ['', '-'][random(2)]! + String(odd) + ['', '.5', 'e308'][random(3) * random(2)]!;
  const end = match.index + match[0].length;
  return Buffer.concat([bytes.subarray(0, match.index), Buffer.from(text), bytes.subarray(end)]);
};

const STEPS: readonly Step[] = [
  ...[flipBit, flipBit, setByte, setByte, setNumber, setNumber, setNumber, nudge, cutOut, repeat],
  ...[insert, splice, splice, cutOff, setDigits],
];

/** One to a few changes. */
export const mutateBytes: Mutate = (input, random, others) => {
  let bytes: Buffer = Buffer.from(input);
  for (let left = 1 + random(4) * random(2); left > 0; left--)
    bytes = STEPS[random(STEPS.length)]!(bytes, random, others);
  return bytes.subarray(0, MAX_INPUT_BYTES);
};

/** Changes that put whole words of a language into a text, among those of its bytes. */
export function mutateText(words: readonly string[]): Mutate {
  return (input, random, others) => {
    if (random(2) === 0) return mutateBytes(input, random, others);
    const at = random(input.length + 1);
    const word = Buffer.from(words[random(words.length)]!);
    const copies = random(20) === 0 ? 1 + random(5000) : 1;
    const replaced = random(2) === 0 ? random(Math.min(input.length - at, word.length) + 1) : 0;
    return Buffer.concat([
      input.subarray(0, at),
      ...new Array<Buffer>(copies).fill(word),
      input.subarray(at + replaced),
    ]).subarray(0, MAX_INPUT_BYTES);
  };
}

function pieceOf(bytes: Uint8Array, random: Random): { readonly from: number; readonly to: number } {
  const from = random(bytes.length + 1);
  const most = random(8) === 0 ? bytes.length : MAX_PIECE_BYTES;
  return { from, to: Math.min(bytes.length, from + random(most + 1)) };
}
