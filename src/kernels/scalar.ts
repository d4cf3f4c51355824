/**
 * The kernels in plain TypeScript: the specification the WebAssembly module is checked against. Written for
 * clarity, a bit and a byte at a time; the arguments, the results and the bytes written are the same.
 */

import type { RawKernels } from './checked-kernels.js';
import { CheckedKernels } from './checked-kernels.js';
import { ANCHOR_CAPACITY_BYTES, type Kernels } from './kernels.js';
import { LinearMemory } from './linear-memory.js';
import { scalarFindAnchors } from './scalar-anchors.js';
import { scalarDecodeInto, scalarDecodePages } from './scalar-decode.js';
import { scalarEncodePages } from './scalar-encode.js';
import { scalarHash64 } from './scalar-hash64.js';
import { PAGE_SIZE_BYTES } from '../types.js';

export function createScalarKernels(memory = new LinearMemory()): Kernels {
  return new CheckedKernels('scalar', memory, new ScalarKernels(memory));
}

class ScalarKernels implements RawKernels {
  constructor(private readonly memory: LinearMemory) {}

  scanEdges(bitmap: number, wordCount: number, firstBit: number, out: number): number {
    const bits = this.memory.bytes();
    const edges = new Uint32Array(bits.buffer, out);
    const isSet = (bit: number) => ((bits[bitmap + (bit >> 3)]! >>> (bit & 7)) & 1) === 1;
    let count = 0;
    for (let bit = 0; bit < wordCount * 64; bit++) {
      if (isSet(bit) !== isSet(bit - 1)) edges[count++] = firstBit + bit;
    }
    return count;
  }

  edgesToRuns(edges: number, runCount: number): void {
    const runs = new Uint32Array(this.memory.bytes().buffer, edges, runCount * 2);
    for (let i = 0; i < runs.length; i += 2) runs[i + 1]! -= runs[i]!;
  }

  popcount(bitmap: number, wordCount: number): number {
    let count = 0;
    for (const byte of this.memory.bytes().subarray(bitmap, bitmap + wordCount * 8)) {
      for (let rest = byte; rest !== 0; rest &= rest - 1) count++;
    }
    return count;
  }

  orInto(dst: number, src: number, wordCount: number): void {
    const bytes = this.memory.bytes();
    for (let i = 0; i < wordCount * 8; i++) bytes[dst + i]! |= bytes[src + i]!;
  }

  andNot(dst: number, src: number, wordCount: number): void {
    const bytes = this.memory.bytes();
    for (let i = 0; i < wordCount * 8; i++) bytes[dst + i]! &= ~bytes[src + i]!;
  }

  encodePages(...args: Parameters<RawKernels['encodePages']>): void {
    scalarEncodePages(this.memory.bytes(), ...args);
  }

  decodeInto(...args: Parameters<RawKernels['decodeInto']>): number {
    return scalarDecodeInto(this.memory.bytes(), ...args);
  }

  decodePages(...args: Parameters<RawKernels['decodePages']>): number {
    return scalarDecodePages(this.memory.bytes(), ...args);
  }

  isZeroPages(pages: number, pageCount: number, outBitmap: number): void {
    const bytes = this.memory.bytes();
    bytes.fill(0, outBitmap, outBitmap + Math.ceil(pageCount / 64) * 8);
    for (let page = 0; page < pageCount; page++) {
      const first = pages + page * PAGE_SIZE_BYTES;
      if (bytes.subarray(first, first + PAGE_SIZE_BYTES).every((byte) => byte === 0)) {
        bytes[outBitmap + (page >>> 3)]! |= 1 << (page & 7);
      }
    }
  }

  findAnchors(page: number, out: number): number {
    const bytes = this.memory.bytes();
    return scalarFindAnchors(bytes, page, new Uint32Array(bytes.buffer, out, ANCHOR_CAPACITY_BYTES / 4));
  }

  hash64(ptr: number, lengthBytes: number, seed: bigint): bigint {
    return scalarHash64(this.memory.bytes().subarray(ptr, ptr + lengthBytes), seed);
  }
}
