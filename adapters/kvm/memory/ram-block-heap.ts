/**
 * Where QEMU keeps its RAM blocks, without symbols or a patched QEMU: the RAMBlock structure
 * (include/exec/ramblock.h, the same from 7.2 to 10.2) is found in its heap by values that `info ramblock`
 * tells.
 *
 *     -24 MemoryRegion *mr   -16 u8 *host   -8 u8 *colo_cache
 *       0 u64 offset         8 u64 used    16 u64 max     24 resized callback
 *      32 u32 flags         36 char idstr[256]           296 RAMBlock *next
 *
 * (Offsets from `offset`.) All fields must agree before a match counts: three numbers, the name with its
 * terminator, and a host address that is mapped for the block's whole length. From the first match on, the
 * list is followed; the rest of the heap is searched only when the list does not lead to all of them.
 */

import { backingOf, mappingsOf, type Mapping } from './process-maps.js';
import { readMemory } from './process-memory.js';
import type { RamBlockRow } from './ram-block-table.js';

export interface FoundBlock {
  /** Address of the structure's `offset` field in QEMU. */
  readonly structAddress: number;
  readonly host: number;
  readonly flags: number;
}

const HOST_AT = -16;
const FLAGS_AT = 32;
const NAME_AT = 36;
const NAME_BYTES = 256;
const NEXT_AT = 296;
/** The window reaches from the host pointer to the end of the list pointer. */
const WINDOW_BYTES = -HOST_AT + NEXT_AT + 8;
/** Read at a time; small enough to stay in the second-level cache between read and search. */
const CHUNK_BYTES = 1 << 20;
/** So that three numbers across the border of two chunks are seen in the second one. */
const OVERLAP_BYTES = 24;

/** @returns what was found, by block name; blocks that were not found are missing */
export function findRamBlocks(
  pid: number,
  maps: readonly Mapping[],
  rows: readonly RamBlockRow[],
): ReadonlyMap<string, FoundBlock> {
  const found = new Map<string, FoundBlock>();
  const wanted = new Map(rows.map((row) => [row.name, row]));
  // Keyed by the low halves of the three numbers; blocks that share all three are told apart by name.
  const byNumbers = new Map<number, RamBlockRow[]>();
  for (const row of rows) {
    const key = keyOf(low(row.offset), low(row.usedBytes), low(row.maxBytes));
    byNumbers.set(key, [...(byNumbers.get(key) ?? []), row]);
  }
  const visit = (address: number): void => {
    for (let next = address; next !== 0;) {
      const block = readBlock(pid, maps, next, wanted);
      if (block === undefined || found.has(block.name)) return;
      found.set(block.name, block.found);
      next = block.next;
    }
  };
  const chunk = Buffer.alloc(CHUNK_BYTES);
  for (const mapping of searchOrder(maps)) {
    for (let start = mapping.start; start < mapping.end; start += CHUNK_BYTES - OVERLAP_BYTES) {
      const lengthBytes = Math.min(CHUNK_BYTES, mapping.end - start);
      const readBytes = readMemory(pid, start, chunk.subarray(0, lengthBytes));
      for (const address of matches(chunk, readBytes, start, byNumbers)) visit(address);
      if (found.size === rows.length) return found;
    }
  }
  return found;
}

/**
 * Reads and checks the structure at an address known from before. Undefined when it is not that block any
 * more.
 */
export function recheckBlock(
  pid: number,
  maps: readonly Mapping[],
  structAddress: number,
  row: RamBlockRow,
): FoundBlock | undefined {
  return readBlock(pid, maps, structAddress, new Map([[row.name, row]]))?.found;
}

function readBlock(
  pid: number,
  maps: readonly Mapping[],
  address: number,
  wanted: ReadonlyMap<string, RamBlockRow>,
): { readonly name: string; readonly found: FoundBlock; readonly next: number } | undefined {
  const bytes = Buffer.alloc(WINDOW_BYTES);
  if (readMemory(pid, address + HOST_AT, bytes) !== WINDOW_BYTES) return undefined;
  const at = (offset: number): number => offset - HOST_AT;
  const nameEnd = bytes.indexOf(0, at(NAME_AT));
  if (nameEnd < 0 || nameEnd >= at(NAME_AT) + NAME_BYTES) return undefined;
  const name = bytes.toString('utf8', at(NAME_AT), nameEnd);
  const row = wanted.get(name);
  if (row === undefined) return undefined;
  const numbers = [row.offset, row.usedBytes, row.maxBytes];
  if (!numbers.every((value, i) => bytes.readBigUInt64LE(at(i * 8)) === BigInt(value))) return undefined;
  const host = Number(bytes.readBigUInt64LE(at(HOST_AT)));
  if (mappingsOf(maps, host, host + row.usedBytes) === undefined) return undefined;
  const flags = bytes.readUInt32LE(at(FLAGS_AT));
  // The list pointer leads to the start of the next structure: 16 bytes of rcu head, mr, host, colo_cache,
  // then `offset`.
  const nextStart = Number(bytes.readBigUInt64LE(at(NEXT_AT)));
  return { name, found: { structAddress: address, host, flags }, next: nextStart === 0 ? 0 : nextStart + 40 };
}

/** Addresses in the chunk at which the three numbers of some block stand. */
function matches(
  chunk: Buffer,
  readBytes: number,
  start: number,
  byNumbers: ReadonlyMap<number, readonly RamBlockRow[]>,
): readonly number[] {
  // Fields of type u64 are 8-aligned.
  const words = new Uint32Array(chunk.buffer, chunk.byteOffset, (readBytes - (readBytes % 8)) / 4);
  const hits: number[] = [];
  const last = words.length - 6;
  for (let i = 0; i <= last; i += 2) {
    // All three are multiples of a page, and `used` of an existing block is not zero.
    const used = words[i + 2]!;
    if ((used & 0xfff) !== 0 || ((words[i]! | words[i + 4]!) & 0xfff) !== 0) continue;
    if (used === 0 && words[i + 3] === 0) continue;
    if (byNumbers.has(keyOf(words[i]!, used, words[i + 4]!))) hits.push(start + i * 4);
  }
  return hits;
}

/**
 * The heap first, then private anonymous memory from small to big: guest memory itself and the translation
 * cache come last.
 */
function searchOrder(maps: readonly Mapping[]): readonly Mapping[] {
  const candidates = maps.filter(
    (mapping) =>
      mapping.readable &&
      mapping.writable &&
      backingOf([mapping]) === 'anonymous' &&
      !mapping.name.startsWith('[stack'),
  );
  const rank = (mapping: Mapping): number => (mapping.name === '[heap]' ? 0 : mapping.end - mapping.start);
  return candidates.sort((a, b) => rank(a) - rank(b));
}

function low(value: number): number {
  return value % 2 ** 32;
}

/**
 * Multiples of a page in, so 20 significant bits each; mixed, not packed: a false hit is only a wasted look.
 */
function keyOf(offset: number, used: number, max: number): number {
  return (
    (Math.imul(offset >>> 12, 0x9e3779b1) ^
      Math.imul(used >>> 12, 0x85ebca6b) ^
      Math.imul(max >>> 12, 0xc2b2ae35)) >>>
    0
  );
}
