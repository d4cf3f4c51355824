/**
 * XXH64 with seed 0, from xxHash's doc/xxhash_spec.md; for the golden verifier, which takes no hash from src/. The rounds of whole pages
 * compute with halves of 32 bits, since with BigInt they would be nearly all of the verifier's time.
 */

import { hash } from 'node:crypto';

const P1 = 11400714785074694791n;
const P2 = 14029467366897019727n;
const P3 = 1609587929392839161n;
const P4 = 9650029242287828579n;
const P5 = 2870177450012600261n;

const mask = (value: bigint): bigint => value & 0xffff_ffff_ffff_ffffn;
const rotl = (value: bigint, by: bigint): bigint => mask(value << by) | (mask(value) >> (64n - by));
const round = (acc: bigint, lane: bigint): bigint => mask(rotl(mask(acc + lane * P2), 31n) * P1);

/** Of a page: below that, looking it up takes longer than computing it. */
const WORTH_KNOWING_BYTES = 4096;
const MOST_KNOWN = 1 << 16;
/** By SHA-256: a test that verifies a repository again and again has it compute the same pages each time. */
const known = new Map<string, bigint>();

export function xxh64(input: Buffer): bigint {
  if (input.length < WORTH_KNOWING_BYTES) return computed(input);
  const key = hash('sha256', input, 'base64');
  let value = known.get(key);
  if (value === undefined) {
    value = computed(input);
    if (known.size >= MOST_KNOWN) known.clear();
    known.set(key, value);
  }
  return value;
}

function computed(input: Buffer): bigint {
  let at = 0;
  let acc = P5;
  if (input.length >= 32) {
    at = input.length - (input.length % 32);
    const lanes = stripes(input, at);
    acc = mask(rotl(lanes[0]!, 1n) + rotl(lanes[1]!, 7n) + rotl(lanes[2]!, 12n) + rotl(lanes[3]!, 18n));
    for (const lane of lanes) acc = mask((acc ^ round(0n, lane)) * P1 + P4);
  }
  acc = mask(acc + BigInt(input.length));
  for (; input.length - at >= 8; at += 8) {
    acc = mask(rotl(acc ^ round(0n, input.readBigUInt64LE(at)), 27n) * P1 + P4);
  }
  if (input.length - at >= 4) {
    acc = mask(rotl(acc ^ mask(BigInt(input.readUInt32LE(at)) * P1), 23n) * P2 + P3);
    at += 4;
  }
  for (; at < input.length; at++) acc = mask(rotl(acc ^ mask(BigInt(input[at]!) * P5), 11n) * P1);
  acc = mask((acc ^ (acc >> 33n)) * P2);
  acc = mask((acc ^ (acc >> 29n)) * P3);
  return acc ^ (acc >> 32n);
}

/** The four accumulators after all stripes of 32 bytes. */
function stripes(input: Buffer, end: number): readonly bigint[] {
  const words = new BigUint64Array([mask(P1 + P2), P2, 0n, mask(-P1)]);
  const halves = new Int32Array(words.buffer);
  for (let at = 0; at < end; at += 32)
    for (let half = 0; half < 8; half += 2)
      roundOfHalves(halves, half, input.readInt32LE(at + half * 4), input.readInt32LE(at + half * 4 + 4));
  return [...words];
}

const [P1_LOW, P1_HIGH] = halvesOf(P1);
const [P2_LOW, P2_HIGH] = halvesOf(P2);

/** `round` of the accumulator at `at` of `acc`, its low half first. */
function roundOfHalves(acc: Int32Array, at: number, low: number, high: number): void {
  const sum = (acc[at]! >>> 0) + (Math.imul(low, P2_LOW) >>> 0);
  const carry = sum > 0xffff_ffff ? 1 : 0;
  const sumLow = sum | 0;
  const sumHigh = (acc[at + 1]! + highOfProduct(low, high, P2_LOW, P2_HIGH) + carry) | 0;
  const turnedLow = (sumLow << 31) | (sumHigh >>> 1);
  const turnedHigh = (sumHigh << 31) | (sumLow >>> 1);
  acc[at] = Math.imul(turnedLow, P1_LOW);
  acc[at + 1] = highOfProduct(turnedLow, turnedHigh, P1_LOW, P1_HIGH);
}

/** Bits 32 to 63 of a product; bits 0 to 31 are Math.imul of the low halves. By quarters, whose products a number holds exactly. */
function highOfProduct(aLow: number, aHigh: number, bLow: number, bHigh: number): number {
  const a0 = aLow & 0xffff;
  const a1 = aLow >>> 16;
  const b0 = bLow & 0xffff;
  const b1 = bLow >>> 16;
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const other = a0 * b1 + (middle & 0xffff);
  const ofQuarters = Math.imul(a1, b1) + (middle >>> 16) + (other >>> 16);
  return (ofQuarters + Math.imul(aLow, bHigh) + Math.imul(aHigh, bLow)) | 0;
}

function halvesOf(value: bigint): readonly [low: number, high: number] {
  return [Number(BigInt.asIntN(32, value)), Number(BigInt.asIntN(32, value >> 32n))];
}
