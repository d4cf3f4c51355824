import fc from 'fast-check';
import { describe, expect, it } from '@jest/globals';

import { CODEC_RAW, CODEC_RUNS } from '../../src/kernels/codec-ids.js';
import {
  putDeltas32,
  putDeltas64,
  putPlanes,
  takeDeltas32,
  takeDeltas64,
  takePlanes,
} from '../../src/format/byte-columns.js';
import {
  decodeBlobFrame,
  decodeFrame,
  decodeFrameAsync,
  encodeBlobFrame,
  encodeFrame,
  FRAME_PAYLOAD_BYTES,
  frameChecksum,
  type FrameRecords,
  type PageRecords,
} from '../../src/format/frame.js';
import { makeRef, MAX_RECORDS_PER_FRAME } from '../../src/format/record-ref.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';

const PLACE = { key: 'vms/web1/packs/00000001', frame: 3 };

const ref = fc
  .tuple(fc.integer({ min: 1, max: 2 ** 24 - 1 }), fc.nat(2 ** 17 - 1), fc.nat(MAX_RECORDS_PER_FRAME - 1))
  .map(([pack, frame, record]) => makeRef(pack, frame, record));

const record = fc.oneof(
  fc.record({
    codec: fc.constant<number>(CODEC_RAW),
    control: fc.constant(new Uint8Array(0)),
    data: fc.uint8Array({ minLength: PAGE_SIZE_BYTES, maxLength: PAGE_SIZE_BYTES, size: 'max' }),
    base: fc.constant(0),
  }),
  fc.record({
    codec: fc.constant<number>(CODEC_RUNS),
    control: fc.uint8Array({ minLength: 1, maxLength: 60 }),
    data: fc.uint8Array({ maxLength: 300 }),
    base: fc.oneof(fc.constant(0), ref),
  }),
);

const frames = fc
  .tuple(
    fc.array(record, { minLength: 1, maxLength: 20 }),
    fc.uniqueArray(fc.nat(2 ** 32 - 1), { minLength: 20, maxLength: 20 }),
  )
  .map(([records, pages]): FrameRecords => ({
    pages: Uint32Array.from(pages.slice(0, records.length)).sort(),
    codecs: Uint8Array.from(records, ({ codec }) => codec),
    controlLengths: Uint16Array.from(records, ({ control }) => control.length),
    dataLengths: Uint16Array.from(records, ({ data }) => data.length),
    baseRefs: Float64Array.from(records, ({ base }) => base),
    depths: new Uint8Array(records.length),
    control: Buffer.concat(records.map(({ control }) => control)),
    data: Buffer.concat(records.map(({ data }) => data)),
    digest: 0x1234_5678_9abc_def0n,
  }));

function streams(decoded: PageRecords): { readonly control: string; readonly data: string } {
  const { body, count, controlOffsets, dataOffsets } = decoded;
  return {
    control: hex(body.subarray(controlOffsets[0], controlOffsets[count])),
    data: hex(body.subarray(dataOffsets[0], dataOffsets[count])),
  };
}

/** Long streams are compared as texts: jest takes seconds for as many numbers. */
function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex');
}

function one(fields: Partial<FrameRecords> = {}): FrameRecords {
  return {
    pages: Uint32Array.of(9),
    codecs: Uint8Array.of(CODEC_RUNS),
    controlLengths: Uint16Array.of(2),
    dataLengths: Uint16Array.of(1),
    baseRefs: Float64Array.of(0),
    depths: Uint8Array.of(0),
    control: Uint8Array.of(0, 1),
    data: Uint8Array.of(7),
    digest: 0n,
    ...fields,
  };
}

describe('a frame', () => {
  it('gives back the records that went in, at any level, decoded here or on another thread', async () => {
    await fc.assert(
      fc.asyncProperty(frames, fc.constantFrom(0, 1, 3), async (records, level) => {
        const encoded = encodeFrame(records, level);
        for (const decoded of [
          decodeFrame(encoded.bytes, PLACE),
          await decodeFrameAsync(encoded.bytes, PLACE),
        ]) {
          expect(decoded.pages).toEqual(records.pages);
          expect(decoded.codecs).toEqual(records.codecs);
          expect(decoded.baseRefs).toEqual(records.baseRefs);
          expect(decoded.digest).toBe(records.digest);
          expect(streams(decoded)).toEqual({ control: hex(records.control), data: hex(records.data) });
        }
        expect(encoded.pages).toEqual(records.pages);
      }),
      { numRuns: 60 },
    );
  });

  it('is detected when any bit of it is flipped, and named', () => {
    const bytes = encodeFrame(one(), 3).bytes;
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const damaged = bytes.slice();
      damaged[bit >>> 3]! ^= 1 << (bit & 7);
      expect(() => decodeFrame(damaged, PLACE)).toThrow(
        expect.objectContaining({ code: 'REPO_DAMAGED', detail: expect.objectContaining(PLACE) }),
      );
    }
  });

  it('is detected when it is cut off or longer', () => {
    const { bytes } = encodeFrame(one(), 3);
    for (let length = 0; length < bytes.length; length++) {
      expect(() => decodeFrame(bytes.slice(0, length), PLACE)).toThrow(
        expect.objectContaining({ code: 'REPO_DAMAGED' }),
      );
    }
    expect(() => decodeFrame(Buffer.concat([bytes, Buffer.of(0)]), PLACE)).toThrow(
      expect.objectContaining({ code: 'REPO_DAMAGED' }),
    );
  });

  it('with a right checksum over wrong fields or a wrong body is refused, and never read out of bounds', () => {
    // What somebody who can compute checksums could write: every byte of header and body replaced in turn.
    const good = encodeFrame(one(), 0).bytes;
    fc.assert(
      fc.property(fc.nat(good.length - 1), fc.nat(255), (at, value) => {
        fc.pre(at < 32 || at >= 64);
        const bytes = good.slice();
        bytes[at] = value;
        bytes.set(frameChecksum(bytes), 32);
        try {
          const decoded = decodeFrame(bytes, PLACE);
          expect(decoded.dataOffsets[decoded.count]).toBe(decoded.body.length);
        } catch (error) {
          expect(error).toMatchObject({ code: 'REPO_DAMAGED' });
        }
      }),
      { numRuns: 2000 },
    );
  });

  it.each([
    ['no records', { pages: new Uint32Array(0), codecs: new Uint8Array(0) }],
    ['columns of different length', { codecs: Uint8Array.of(2, 2) }],
    ['an unknown codec', { codecs: Uint8Array.of(0) }],
    ['a raw page that is too short', { codecs: Uint8Array.of(CODEC_RAW) }],
    ['runs without control bytes', { controlLengths: Uint16Array.of(0), control: new Uint8Array(0) }],
    ['streams of another length', { data: Uint8Array.of(1, 2) }],
    ['a base that is no reference', { baseRefs: Float64Array.of(12) }],
    ['too much payload', { data: new Uint8Array(FRAME_PAYLOAD_BYTES + PAGE_SIZE_BYTES) }],
  ] as const)('is not made of %s', (_, fields) => {
    expect(() => encodeFrame(one(fields), 3)).toThrow(expect.objectContaining({ name: 'RangeError' }));
  });

  it('holds a blob, an empty one too', () => {
    for (const blob of [
      new Uint8Array(0),
      new Uint8Array(100_000).fill(3),
      Uint8Array.from({ length: 999 }, (_, i) => i * 37),
    ]) {
      expect(hex(decodeBlobFrame(encodeBlobFrame(blob, 3), PLACE))).toBe(hex(blob));
    }
    expect(() => decodeFrame(encodeBlobFrame(new Uint8Array(3), 3), PLACE)).toThrow(/not a frame of pages/);
    expect(() => decodeBlobFrame(encodeFrame(one(), 3).bytes, PLACE)).toThrow(/not a blob/);
  });

  it('with a blob and a digest is refused: the digest of a blob is 0', () => {
    const bytes = encodeBlobFrame(new Uint8Array(3), 3);
    bytes[16] = 1;
    bytes.set(frameChecksum(bytes), 32);
    expect(() => decodeBlobFrame(bytes, PLACE)).toThrow(/a blob has a digest/);
  });
});

describe('columns', () => {
  it('give back the numbers that went in', () => {
    fc.assert(
      fc.property(fc.uint32Array(), fc.array(fc.maxSafeNat()), (small, large) => {
        const planes = new Uint8Array(small.length * 4);
        expect(putPlanes(planes, 0, small, 4)).toBe(planes.length);
        expect(takePlanes(planes, 0, small.length, 4)).toEqual(small);
        putDeltas32(planes, 0, small);
        expect(takeDeltas32(planes, 0, small.length)).toEqual(small);
        const wide = new Uint8Array(large.length * 8);
        expect(putDeltas64(wide, 0, Float64Array.from(large))).toBe(wide.length);
        expect(takeDeltas64(wide, 0, large.length)).toEqual(Float64Array.from(large));
      }),
    );
  });
});
