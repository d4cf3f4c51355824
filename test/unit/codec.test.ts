import { describe, expect, it } from '@jest/globals';
import { CODEC_RAW, CODEC_RUNS, CODEC_SAME, CODEC_ZERO } from '../../src/kernels/codec-ids.js';
import { PageCodec } from '../../src/kernels/page-codec.js';
import { isCheckpointError } from '../../src/errors.js';
import { createScalarKernels } from '../../src/kernels/scalar.js';

const codec = new PageCodec();
const zeros = new Uint8Array(4096);
const none = new Uint8Array(0);

function counting(): Uint8Array {
  return Uint8Array.from({ length: 4096 }, (_, i) => i & 0xff);
}

function failure(
  record: { codec: number; control?: Uint8Array; data?: Uint8Array },
  page = counting(),
): string {
  try {
    codec.decode({ control: none, data: none, ...record }, page);
  } catch (error) {
    if (isCheckpointError(error, 'CODEC_MALFORMED')) return error.message;
    throw error;
  }
  return 'accepted';
}

describe('PageCodec', () => {
  it('keeps to the stored ids', () => {
    expect([CODEC_ZERO, CODEC_RAW, CODEC_RUNS, CODEC_SAME]).toEqual([0, 1, 2, 3]);
  });

  it('stores changed bytes only', () => {
    const page = counting();
    page[8] = 0xff;
    page[9] = 0xfe;
    page[4095] = 0;
    expect(codec.encode(page, counting())).toEqual({
      codec: CODEC_RUNS,
      // 8 bytes kept, 2 changed; 4085 kept (f5 1f), 1 changed
      control: Uint8Array.of(8, 2, 0xf5, 0x1f, 1),
      data: Uint8Array.of(0xff, 0xfe, 0),
    });
  });

  it('merges changes that lie up to two bytes apart', () => {
    const controlOf = (distance: number) => {
      const page = counting();
      page[0]! ^= 1;
      page[1 + distance]! ^= 1;
      return [...codec.encode(page, counting()).control];
    };
    expect(controlOf(1)).toEqual([0, 3]);
    expect(controlOf(2)).toEqual([0, 4]);
    expect(controlOf(3)).toEqual([0, 1, 3, 1]);
  });

  it('stores a page without a base as zero or raw', () => {
    expect(codec.encode(zeros)).toEqual({ codec: CODEC_ZERO, control: none, data: none });
    expect(codec.encode(counting())).toEqual({ codec: CODEC_RAW, control: none, data: counting() });
  });

  it('stores nothing for a page that equals its base, zero or not', () => {
    expect(codec.encode(zeros, zeros).codec).toBe(CODEC_SAME);
    expect(codec.encode(counting(), counting()).codec).toBe(CODEC_SAME);
    expect(codec.encode(zeros, counting()).codec).toBe(CODEC_ZERO);
  });

  it('brings a page back in place, with either kernel', () => {
    for (const each of [codec, new PageCodec(createScalarKernels())]) {
      const after = counting().map((byte, i) => (i % 100 < 3 ? byte ^ 0x55 : byte));
      for (const base of [counting(), zeros]) {
        const page = base.slice();
        each.decode(each.encode(after, base), page);
        expect(page).toEqual(after);
      }
    }
  });

  it('names what is wrong with a record', () => {
    const run = (...control: number[]) => ({
      codec: CODEC_RUNS,
      control: Uint8Array.from(control),
      data: Uint8Array.of(1, 2),
    });
    expect(failure(run(5, 2))).toBe('accepted');
    expect(failure({ codec: 9 })).toMatch(/codec 9.*unknown codec id/);
    expect(failure({ codec: CODEC_ZERO, data: Uint8Array.of(1) })).toMatch(
      /zero.*payload where the codec has none/,
    );
    expect(failure({ codec: CODEC_SAME, control: Uint8Array.of(1) })).toMatch(
      /payload where the codec has none/,
    );
    expect(failure({ codec: CODEC_RAW, data: Uint8Array.of(1) })).toMatch(/not 4096 bytes/);
    expect(failure({ codec: CODEC_RUNS })).toMatch(/no runs/);
    expect(failure({ ...run(0, 1), data: counting() })).toMatch(/not shorter than a page/);
    expect(failure({ codec: CODEC_RAW, data: new Uint8Array(100_000) })).toMatch(/not shorter than a page/);
    expect(failure(run(5))).toMatch(/ends inside a run/);
    expect(failure(run(0x80))).toMatch(/ends inside a run/);
    expect(failure(run(5, 0x82))).toMatch(/ends inside a run/);
    expect(failure(run(0x80, 0x80, 0x01, 2))).toMatch(/too long/);
    expect(failure(run(5, 0x82, 0x00))).toMatch(/too long/);
    expect(failure(run(5, 0))).toMatch(/length 0/);
    expect(failure(run(0xff, 0x1f, 2))).toMatch(/past the end of the page/);
    expect(failure(run(5, 3))).toMatch(/more data than the record has/);
    expect(failure(run(5, 1))).toMatch(/left over/);
  });

  it('leaves the page as it was when a record is refused half way', () => {
    const page = counting();
    expect(
      failure({ codec: CODEC_RUNS, control: Uint8Array.of(0, 1, 5, 0), data: Uint8Array.of(0xee) }, page),
    ).toMatch(/length 0/);
    expect(page).toEqual(counting());
  });

  it('takes whole pages only', () => {
    expect(() => codec.encode(new Uint8Array(4095))).toThrow(RangeError);
    expect(() => codec.encode(zeros, new Uint8Array(4097))).toThrow(RangeError);
    expect(() => codec.decode({ codec: CODEC_ZERO, control: none, data: none }, new Uint8Array(1))).toThrow(
      RangeError,
    );
  });
});
