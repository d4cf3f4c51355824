import fc from 'fast-check';
import { describe, expect, it } from '@jest/globals';

import { compressWithPrefix, decompress, decompressWithPrefix } from '../../src/ffi/zstd.js';
import { ANCHOR_CAPACITY_BYTES } from '../../src/kernels/kernels.js';
import { createScalarKernels } from '../../src/kernels/scalar.js';
import { planPatches } from '../../src/pool/patch-plan.js';
import { isBlankRecord } from '../../src/format/blank-record.js';
import { frameChecksum } from '../../src/format/frame.js';
import { encodePatchFrame, readPatch, unpackPatch, type PatchInput } from '../../src/format/patch-frame.js';
import { makeRef } from '../../src/format/record-ref.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { seeded } from './repository-model.js';

const PACK = 7;
const PLACE = { key: 'vms/web1/packs/00000007', frame: 3 };

function randomPages(count: number, seed: number): Uint8Array {
  const random = seeded(seed);
  return Uint8Array.from({ length: count * PAGE_SIZE_BYTES }, () => random(256));
}

/** Two pages that hold what three others held, at another offset. */
function moved(): PatchInput {
  const prefix = randomPages(3, 1);
  return {
    pages: Uint32Array.of(4, 9),
    contents: prefix.slice(700, 700 + 2 * PAGE_SIZE_BYTES),
    sources: Float64Array.of(makeRef(2, 0, 1), makeRef(7, 1, 0), makeRef(7, 2, 5)),
    prefix,
    depth: 3,
    digest: 5n,
  };
}

describe('a patch frame', () => {
  it('gives its pages back from the sources, and takes little for what they hold', () => {
    const input = moved();
    const { bytes, depths } = encodePatchFrame(input, 3);
    expect(bytes.length).toBeLessThan(300);
    expect([...depths]).toEqual([3, 3]);
    const patch = readPatch(bytes, PACK, PLACE);
    expect(patch).toMatchObject({ pages: input.pages, sources: input.sources, digest: 5n });
    const records = unpackPatch(patch, input.prefix, PLACE);
    expect(Buffer.compare(records.body, input.contents)).toBe(0);
  });

  it('needs no sources', () => {
    const input = { ...moved(), sources: new Float64Array(0), prefix: new Uint8Array(0), depth: 0 };
    const patch = readPatch(encodePatchFrame(input, 3).bytes, PACK, PLACE);
    expect(Buffer.compare(unpackPatch(patch, input.prefix, PLACE).body, input.contents)).toBe(0);
  });

  it('says which of its records were given up, and gives the others', () => {
    const input = moved();
    const contents = input.contents.slice().fill(0, 0, PAGE_SIZE_BYTES);
    const { bytes } = encodePatchFrame({ ...input, contents, blanks: Uint16Array.of(0) }, 3);
    const patch = readPatch(bytes, PACK, PLACE);
    expect([...patch.blanks]).toEqual([0]);
    const records = unpackPatch(patch, input.prefix, PLACE);
    expect([isBlankRecord(records, 0), isBlankRecord(records, 1)]).toEqual([true, false]);
    const page = records.body.subarray(records.dataOffsets[1], records.dataOffsets[2]);
    expect(Buffer.compare(page, contents.subarray(PAGE_SIZE_BYTES))).toBe(0);
  });

  it.each([[[1, 0]], [[0, 0]], [[2]], [[0, 1]]])('refuses blank records %j of two', (blanks) => {
    const { bytes } = encodePatchFrame({ ...moved(), blanks: Uint16Array.from(blanks) }, 3);
    expect(() => readPatch(bytes, PACK, PLACE)).toThrow(/blank records/);
  });

  it('with a right checksum over wrong fields or a wrong body is refused or read within bounds', () => {
    const input = moved();
    const good = encodePatchFrame(input, 3).bytes;
    fc.assert(
      fc.property(fc.nat(good.length - 1), fc.nat(255), (at, value) => {
        fc.pre(at < 32 || at >= 64);
        const bytes = good.slice();
        bytes[at] = value;
        bytes.set(frameChecksum(bytes), 32);
        try {
          const patch = readPatch(bytes, PACK, PLACE);
          expect(patch.sources.every((ref) => ref < makeRef(PACK, PLACE.frame, 0))).toBe(true);
          const prefix = input.prefix.subarray(0, patch.sources.length * PAGE_SIZE_BYTES);
          expect(unpackPatch(patch, prefix, PLACE).body).toHaveLength(patch.pages.length * PAGE_SIZE_BYTES);
        } catch (error) {
          expect(error).toMatchObject({ code: 'REPO_DAMAGED' });
        }
      }),
      { numRuns: 1000 },
    );
  });

  it('may not be held against what does not lie before it', () => {
    const input = {
      ...moved(),
      sources: Float64Array.of(makeRef(2, 0, 1), makeRef(7, 2, 0), makeRef(7, 3, 0)),
    };
    expect(() => readPatch(encodePatchFrame(input, 3).bytes, PACK, PLACE)).toThrow(/does not lie before/);
  });

  it('refuses lengths that do not fit together', () => {
    const input = moved();
    expect(() => encodePatchFrame({ ...input, prefix: input.prefix.subarray(1) }, 3)).toThrow(RangeError);
    expect(() => encodePatchFrame({ ...input, pages: new Uint32Array(0) }, 3)).toThrow(RangeError);
  });
});

describe('compression against a prefix', () => {
  it('leaves nothing behind for the next call', () => {
    const prefix = randomPages(2, 1);
    const packed = compressWithPrefix(prefix.slice(), prefix, 3);
    expect(packed.length).toBeLessThan(100);
    expect(() => decompress(packed, prefix.length)).toThrow();
    expect(Buffer.compare(decompressWithPrefix(packed, prefix, prefix.length), prefix)).toBe(0);
    expect(decompress(compressWithPrefix(prefix, new Uint8Array(0), 3), prefix.length)).toHaveLength(
      prefix.length,
    );
  });
});

describe('the plan of patches', () => {
  /** Pages 0 and 1 as they were; 2 to 4 are new: 3 holds what 1 held, at an odd offset, 4 what 3 holds, at another. */
  const memory = randomPages(5, 2);
  const page = (i: number): Uint8Array => memory.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES);
  page(3).set(page(1).subarray(513));
  page(4).set(page(3).subarray(0, 2048), 1026);
  const kernels = createScalarKernels();
  const room = memory.length;
  kernels.ensure(room + ANCHOR_CAPACITY_BYTES);
  kernels.bytes().set(memory);
  const anchorsOf = (content: number): Int32Array =>
    new Int32Array(kernels.bytes().buffer, room, kernels.findAnchors(content, room));
  const previous = [0, 1].map((position) => ({ position, content: position * PAGE_SIZE_BYTES }));
  const candidate = (position: number, at: number, hasRuns = false) =>
    ({ position, content: at * PAGE_SIZE_BYTES, hasRuns }) as const;

  it('finds the page that content came from, and no other', () => {
    expect(planPatches(anchorsOf, [candidate(7, 3)], previous)).toEqual([{ members: [7], sources: [1] }]);
  });

  it('puts pages of common content together', () => {
    const groups = planPatches(anchorsOf, [candidate(8, 4), candidate(5, 3)], previous);
    expect(groups).toEqual([{ members: [5, 8], sources: [1] }]);
  });

  it('leaves a page as runs that has them and shares nothing', () => {
    expect(planPatches(anchorsOf, [candidate(6, 2, true)], previous)).toEqual([]);
    expect(planPatches(anchorsOf, [candidate(0, 2, true)], previous)).toEqual([
      { members: [0], sources: [0] },
    ]);
  });
});
