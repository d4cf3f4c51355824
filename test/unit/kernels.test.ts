import { describe, expect, it } from '@jest/globals';
import type { EncodeJob, Kernels } from '../../src/kernels/kernels.js';
import { controlCapacityBytes, dataCapacityBytes, edgeCapacityBytes } from '../../src/kernels/kernels.js';
import { LinearMemory, MAX_MEMORY_BYTES } from '../../src/kernels/linear-memory.js';
import { createScalarKernels } from '../../src/kernels/scalar.js';
import { createWasmKernels } from '../../src/kernels/wasm.js';

const makers: [string, (memory?: LinearMemory) => Kernels][] = [
  ['wasm', createWasmKernels],
  ['scalar', createScalarKernels],
];

/** The generator of the reference implementation's self-test (xxHash, tests/sanity_test.c). */
function sanityBuffer(length: number): Uint8Array {
  let state = 2654435761n;
  return Uint8Array.from({ length }, () => {
    const byte = Number(state >> 56n);
    state = BigInt.asUintN(64, state * 11400714785074694797n);
    return byte;
  });
}

describe.each(makers)('hash64 (%s)', (_, make) => {
  const kernels = make();
  const hash = (input: Uint8Array, seed: bigint) => {
    kernels.bytes().set(input, 8);
    return kernels.hash64(8, input.length, seed);
  };
  const seed = 2654435761n;

  it('gives the published XXH64 values', () => {
    expect(hash(new Uint8Array(0), 0n)).toBe(0xef46db3751d8e999n);
    expect(hash(new TextEncoder().encode('abc'), 0n)).toBe(0x44bc2cf5ad770999n);
    expect(hash(new Uint8Array(0), seed)).toBe(0xac75fda2929b17efn);
    expect(hash(sanityBuffer(1), 0n)).toBe(0xe934a84adb052768n);
    expect(hash(sanityBuffer(1), seed)).toBe(0x5014607643a9b4c3n);
    expect(hash(sanityBuffer(4), 0n)).toBe(0x9136a0dca57457een);
    expect(hash(sanityBuffer(14), 0n)).toBe(0x8282dcc4994e35c8n);
    expect(hash(sanityBuffer(14), seed)).toBe(0xc3bd6bf63deb6df0n);
    expect(hash(sanityBuffer(222), 0n)).toBe(0xb641ae8cb691c174n);
    expect(hash(sanityBuffer(222), seed)).toBe(0x20cb8ab7ae10c14an);
  });
});

describe.each(makers)('arguments (%s)', (_, make) => {
  const kernels = make(new LinearMemory(65_536));
  const size = 65_536;
  const job: EncodeJob = {
    pageCount: 2,
    newPages: 64,
    bases: 16_384,
    codecs: 16_400,
    controlLengths: 16_408,
    dataLengths: 16_416,
    result: 16_424,
    control: 20_480,
    data: 32_768,
    updateBases: false,
  };

  it('are refused when they lead out of the memory', () => {
    expect(() => kernels.popcount(size - 8, 2)).toThrow(RangeError);
    expect(() => kernels.popcount(-8, 1)).toThrow(RangeError);
    expect(() => kernels.orInto(0, size, 1)).toThrow(RangeError);
    expect(() => kernels.andNot(size, 0, 1)).toThrow(RangeError);
    expect(() => kernels.scanEdges(64, 16, 0, size - edgeCapacityBytes(16) + 4)).toThrow(RangeError);
    expect(() => kernels.scanEdges(0, 16, 0, 4096)).toThrow(RangeError);
    expect(() => kernels.edgesToRuns(size - 8, 2)).toThrow(RangeError);
    expect(() => kernels.isZeroPages(size - 4096, 2, 0)).toThrow(RangeError);
    expect(() => kernels.hash64(size - 1, 2, 0n)).toThrow(RangeError);
    expect(() => kernels.decodeInto(2, 0, 1, 0, size + 1, 0)).toThrow(RangeError);
    expect(() => kernels.decodeInto(2, 0, -1, 0, 1, 0)).toThrow(RangeError);
    expect(() => kernels.decodeInto(2, 0, 1, 0, 1, size - 4095)).toThrow(RangeError);
    expect(() => kernels.encodePages({ ...job, newPages: size - 4096 })).toThrow(RangeError);
    expect(() => kernels.encodePages({ ...job, control: size - controlCapacityBytes(2) + 1 })).toThrow(
      RangeError,
    );
    expect(() => kernels.encodePages({ ...job, data: size - dataCapacityBytes(2) + 1 })).toThrow(RangeError);
  });

  it('are refused when a base page leads out of the memory', () => {
    const bases = new Uint32Array(kernels.bytes().buffer, job.bases, 2);
    bases.set([size - 4096, 0]);
    expect(() => kernels.encodePages(job)).not.toThrow();
    bases.set([0, size - 4095]);
    expect(() => kernels.encodePages(job)).toThrow(RangeError);
  });

  it('are refused when they are not aligned or not whole numbers', () => {
    expect(() => kernels.popcount(4, 1)).toThrow(RangeError);
    expect(() => kernels.popcount(0, 0.5)).toThrow(RangeError);
    expect(() => kernels.scanEdges(64, 16, 0, 4098)).toThrow(RangeError);
    expect(() => kernels.scanEdges(64, 15, 0, 4096)).toThrow(RangeError);
    expect(() => kernels.scanEdges(64, 16, 2 ** 32 - 1023, 4096)).toThrow(RangeError);
    expect(() => kernels.encodePages({ ...job, bases: job.bases + 2 })).toThrow(RangeError);
    expect(() => kernels.encodePages({ ...job, controlLengths: job.controlLengths + 1 })).toThrow(RangeError);
    expect(() => kernels.hash64(NaN, 1, 0n)).toThrow(RangeError);
  });

  it('do not let a large codec number wrap into a valid one', () => {
    expect(kernels.decodeInto(2 ** 32, 0, 0, 0, 0, 0)).not.toBe(0);
    expect(kernels.decodeInto(-1, 0, 0, 0, 0, 0)).not.toBe(0);
  });
});

describe.each(makers)('linear memory (%s)', (_, make) => {
  it('keeps its contents when it grows, and bytes() follows', () => {
    const kernels = make();
    kernels.bytes()[100] = 42;
    const before = kernels.bytes();
    kernels.ensure(before.length + 1);
    expect(kernels.bytes().length).toBe(2 * 65_536);
    expect(kernels.bytes()[100]).toBe(42);
    expect(before.length).toBe(0);
    kernels.ensure(1);
    expect(kernels.bytes().length).toBe(2 * 65_536);
  });

  it('is refused beyond its limit', () => {
    const kernels = make();
    expect(() => kernels.ensure(MAX_MEMORY_BYTES + 1)).toThrow(RangeError);
    expect(() => new LinearMemory(MAX_MEMORY_BYTES + 1)).toThrow(RangeError);
  });
});

describe.each(makers)('a page at the very end of the memory (%s)', (_, make) => {
  it('is encoded up to its last byte without reading past it', () => {
    const kernels = make(new LinearMemory(65_536));
    const memory = kernels.bytes();
    const newPages = 65_536 - 4096;
    new Uint32Array(memory.buffer, 64, 1)[0] = 1;
    for (let length = 1; length <= 40; length++) {
      memory.fill(0, newPages).fill(9, 65_536 - length);
      const totals = kernels.encodePages({
        pageCount: 1,
        newPages,
        bases: 64,
        codecs: 80,
        controlLengths: 84,
        dataLengths: 88,
        result: 96,
        control: 128,
        data: 8192,
        updateBases: false,
      });
      expect(totals).toEqual({ controlBytes: 3, dataBytes: length });
      expect(memory.slice(8192, 8192 + length)).toEqual(new Uint8Array(length).fill(9));
    }
  });
});

describe('pointers above 2 GiB', () => {
  // Untouched memory is address space only; the test uses a few pages of it at the top.
  const kernels = createWasmKernels(new LinearMemory(MAX_MEMORY_BYTES));
  const top = MAX_MEMORY_BYTES - 1024 * 1024;

  it('work to the last byte', () => {
    const memory = kernels.bytes();
    memory.set(new TextEncoder().encode('abc'), MAX_MEMORY_BYTES - 3);
    expect(kernels.hash64(MAX_MEMORY_BYTES - 3, 3, 0n)).toBe(0x44bc2cf5ad770999n);

    const bitmap = top;
    memory[bitmap + 1023] = 0x80;
    expect(kernels.popcount(bitmap, 128)).toBe(1);
    const edges = MAX_MEMORY_BYTES - 65_536;
    expect(kernels.scanEdges(bitmap, 128, 0, edges)).toBe(1);
    expect(new Uint32Array(memory.buffer, edges, 1)[0]).toBe(8191);
  });

  it('encode and decode', () => {
    const memory = kernels.bytes();
    const newPages = top + 65_536;
    const base = newPages + 4096;
    const fields = base + 4096;
    const control = fields + 64;
    const data = control + controlCapacityBytes(1);
    memory[newPages + 4095] = 7;
    memory[base] = 1;
    memory[newPages] = 1;
    new Uint32Array(memory.buffer, fields, 1)[0] = base;
    const totals = kernels.encodePages({
      pageCount: 1,
      newPages,
      bases: fields,
      codecs: fields + 16,
      controlLengths: fields + 20,
      dataLengths: fields + 24,
      result: fields + 32,
      control,
      data,
      updateBases: false,
    });
    expect(totals).toEqual({ controlBytes: 3, dataBytes: 1 });
    expect(kernels.decodeInto(2, control, 3, data, 1, base)).toBe(0);
    expect(memory[base + 4095]).toBe(7);
  });
});
