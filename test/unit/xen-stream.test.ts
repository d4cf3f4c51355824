import { createHash } from 'node:crypto';

import { describe, expect, it } from '@jest/globals';

import {
  captureHvmState,
  decodeDeviceState,
  encodeDeviceState,
  type XenDeviceState,
} from '../../adapters/xen/stream/device-state.js';
import { XenDomain } from '../../adapters/xen/domain/domain.js';
import { layoutOf } from '../../adapters/xen/domain/physmap.js';
import { LIBXC_RECORD } from '../../adapters/xen/stream/format.js';
import { readSaveFile, type SaveItem } from '../../adapters/xen/stream/reader.js';
import { decodeRecords, encodeRecord } from '../../adapters/xen/stream/records.js';
import { writeSaveFile } from '../../adapters/xen/stream/writer.js';
import type { PageChunk } from '../../src/hypervisor/restore.js';
import { FakeXen } from '../support/fake-xen.js';

const PAGE = 4096;
const layout = layoutOf([
  { firstFrame: 0, frameCount: 1536 },
  { firstFrame: 0xfee00, frameCount: 512 },
]);
const CONFIG = '{"c_info":{"type":"pvh","name":"web1"}}';

/** Pages hold their own index in every byte; every seventh is zero. */
function contentOf(page: number): Uint8Array {
  return new Uint8Array(PAGE).fill(page % 7 === 0 ? 0 : page % 251);
}

// eslint-disable-next-line @typescript-eslint/require-await -- the shape of a checkpoint's pages
async function* pages(): AsyncGenerator<PageChunk> {
  for (const { firstPage, pageCount } of layout.regions) {
    for (let at = 0; at < pageCount; at += 100) {
      const count = Math.min(100, pageCount - at);
      const bytes = Buffer.concat(Array.from({ length: count }, (_, i) => contentOf(firstPage + at + i)));
      yield { firstPage: firstPage + at, pageCount: count, bytes };
    }
  }
}

function stateOf(presentFrames: Uint32Array): XenDeviceState {
  const xen = new FakeXen();
  return decodeDeviceState(encodeDeviceState(captureHvmState(new XenDomain(xen, xen.domid), presentFrames)));
}

const PRESENT = Uint32Array.of(0, 16, 17, 1400, 0xfeff8, 8);

async function written(presentFrames = PRESENT): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  const content = { config: CONFIG, version: { major: 4, minor: 17 }, state: stateOf(presentFrames), layout };
  for await (const part of writeSaveFile({ ...content, pages: pages() })) parts.push(part);
  return Buffer.concat(parts);
}

/** In pieces of an odd size, as a pipe delivers them. */
// eslint-disable-next-line @typescript-eslint/require-await -- stands for a stream
async function* inPieces(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += 5003) yield bytes.subarray(at, at + 5003);
}

async function readAll(bytes: Uint8Array): Promise<readonly SaveItem[]> {
  const items: SaveItem[] = [];
  for await (const item of readSaveFile(inPieces(bytes))) items.push(item);
  return items;
}

describe('the save stream of Xen', () => {
  it('is read back by the reader, which shares no code with the writer', async () => {
    const items = await readAll(await written());
    const [head] = items;
    expect(head).toEqual({
      kind: 'head',
      head: { config: CONFIG, guestType: 2, xenMajor: 4, xenMinor: 17 },
    });
    const frames: number[] = [];
    for (const item of items) {
      if (item.kind !== 'page') continue;
      frames.push(item.frame);
      const page = item.frame >= 0xfee00 ? 1536 + item.frame - 0xfee00 : item.frame;
      expect(item.type).toBe(0);
      expect(Buffer.compare(Buffer.from(item.bytes!), Buffer.from(contentOf(page)))).toBe(0);
    }
    const expected = [...range(0, 16), ...range(17, 1400), ...range(0xfeff8, 8)];
    expect(frames).toEqual(expected);
  });

  it('has the state records in the order in which libxc wants them', async () => {
    const items = await readAll(await written());
    const states = items.flatMap((item) => (item.kind === 'state' ? [[item.record.type, item.before]] : []));
    expect(states).toEqual([
      [LIBXC_RECORD.cpuidPolicy, true],
      [LIBXC_RECORD.msrPolicy, true],
      [LIBXC_RECORD.tscInfo, false],
      [LIBXC_RECORD.hvmContext, false],
      [LIBXC_RECORD.hvmParams, false],
    ]);
  });

  it('is byte for byte what it was when the lab last had xl restore it', async () => {
    const bytes = await written();
    expect(bytes.subarray(0, 32).toString('latin1')).toBe('Xen saved domain, xl format\n \0 \r');
    expect({ length: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') }).toEqual({
      length: GOLDEN_LENGTH,
      sha256: GOLDEN_SHA256,
    });
  });

  it('cannot be written when a page that the guest had is not in the checkpoint', async () => {
    await expect(written(Uint32Array.of(0, 16, 0x9000, 4))).rejects.toMatchObject({
      code: 'STREAM_MALFORMED',
    });
  });

  it.each([
    ['cut off', (bytes: Buffer) => bytes.subarray(0, bytes.length - 9)],
    ['of another program', (bytes: Buffer) => Buffer.concat([Buffer.from('QEVM'), bytes.subarray(4)])],
    ['empty', () => Buffer.alloc(0)],
    ['with a page count that does not fit', (bytes: Buffer) => patched(bytes, pageRecordAt(bytes) + 8, 5000)],
    ['with a wrong record length', (bytes: Buffer) => patched(bytes, pageRecordAt(bytes) + 4, 4104)],
  ])('is refused when it is %s', async (_, damage) => {
    await expect(readAll(damage(await written()))).rejects.toMatchObject({ code: 'STREAM_MALFORMED' });
  });
});

describe('the stored device state', () => {
  it('keeps frames and records', () => {
    const state = stateOf(PRESENT);
    expect(state.presentFrames).toEqual(PRESENT);
    expect(state.guestType).toBe(2);
    const params = state.after.find(({ type }) => type === LIBXC_RECORD.hvmParams)!.body;
    // Parameters that are 0 are left out, as xl save does.
    expect(new DataView(params.buffer, params.byteOffset).getUint32(0, true)).toBe(15);
  });

  it.each([
    ['empty', new Uint8Array(0)],
    ['of another adapter', new Uint8Array(64)],
    [
      'cut off',
      Buffer.concat([Buffer.from('CairnXen'), Buffer.from([1, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 99])]),
    ],
  ])('is refused when it is %s', (_, bytes) => {
    expect(() => decodeDeviceState(bytes)).toThrow(expect.objectContaining({ code: 'STREAM_MALFORMED' }));
  });

  it('has records padded to 8 bytes', () => {
    const bytes = encodeRecord({ type: 5, body: Uint8Array.of(1, 2, 3) });
    expect(bytes.length).toBe(16);
    expect(decodeRecords(bytes)).toEqual([{ type: 5, body: bytes.subarray(8, 11) }]);
  });
});

/** Of the file that `written` makes. */
const GOLDEN_LENGTH = 5_844_724;
const GOLDEN_SHA256 = 'e09487a8d64a523619e2526cd2e84bbc754b6c67423c2c96ac223d009ad44286';

function range(first: number, count: number): readonly number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}

/** The first PAGE_DATA record: type 1 and the length of a full record. */
function pageRecordAt(bytes: Buffer): number {
  const head = Buffer.alloc(12);
  head.writeUInt32LE(1, 0);
  head.writeUInt32LE(8 + 8 * 1024 + 1024 * PAGE, 4);
  head.writeUInt32LE(1024, 8);
  return bytes.indexOf(head);
}

function patched(bytes: Buffer, at: number, value: number): Buffer {
  const copy = Buffer.from(bytes);
  copy.writeUInt32LE(value, at);
  return copy;
}
