/** XXH64 with seed 0, from xxHash's doc/xxhash_spec.md; for the golden verifier, which takes no hash from src/. */

const P1 = 11400714785074694791n;
const P2 = 14029467366897019727n;
const P3 = 1609587929392839161n;
const P4 = 9650029242287828579n;
const P5 = 2870177450012600261n;

const mask = (value: bigint): bigint => value & 0xffff_ffff_ffff_ffffn;
const rotl = (value: bigint, by: bigint): bigint => mask(value << by) | (mask(value) >> (64n - by));
const round = (acc: bigint, lane: bigint): bigint => mask(rotl(mask(acc + lane * P2), 31n) * P1);

export function xxh64(input: Buffer): bigint {
  let at = 0;
  let acc = P5;
  if (input.length >= 32) {
    const lanes = [mask(P1 + P2), P2, 0n, mask(-P1)];
    while (input.length - at >= 32) {
      for (let lane = 0; lane < 4; lane++, at += 8)
        lanes[lane] = round(lanes[lane]!, input.readBigUInt64LE(at));
    }
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
