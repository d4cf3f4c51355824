import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';

import { exportCheckpoint } from '../../adapters/kvm/export.js';
import { EXPORT_FORMATS } from '../../adapters/kvm/formats.js';
import { deviceSections, withRunState } from '../../adapters/qemu/stream/device-state.js';
import { pushStream } from '../../adapters/qemu/stream/push.js';
import { readMigrationStream, type MigrationStream } from '../../adapters/qemu/stream/reader.js';
import { splitSections } from '../../adapters/qemu/stream/sections.js';
import { sectionLengths } from '../../adapters/qemu/stream/vm-description.js';
import { writeMigrationStream, type StreamContent } from '../../adapters/qemu/stream/writer.js';
import type { CheckpointSource, PageChunk } from '../../src/hypervisor/restore.js';
import { layOut, type MemoryLayout } from '../../src/hypervisor/memory-layout.js';
import { Writable } from 'node:stream';

const PAGE = 4096;
const HEADER = Buffer.from('5145564d00000003', 'hex');

function section(id: number, name: string, body: Buffer): Buffer {
  const head = Buffer.alloc(14 + name.length);
  head[0] = 4;
  head.writeUInt32BE(id, 1);
  head[5] = name.length;
  head.write(name, 6);
  head.writeUInt32BE(1, 6 + name.length + 4);
  const foot = Buffer.alloc(5);
  foot[0] = 0x7e;
  foot.writeUInt32BE(id, 1);
  return Buffer.concat([head, body, foot]);
}

function globalState(state: string): Buffer {
  const body = Buffer.alloc(104);
  body.writeUInt32BE(state.length + 1);
  body.write(state, 4);
  return section(9, 'globalstate', body);
}

const DEVICES = Buffer.concat([
  section(0, 'timer', Buffer.from('0102030405', 'hex')),
  globalState('running'),
]);
const BLOB = Buffer.concat([HEADER, DEVICES, Buffer.from([0])]);

/** Content of a page: null for zero, else a byte that fills it, the page's number at its start. */
type Fill = number | null;

function chunksOf(layout: MemoryLayout, fills: readonly Fill[], chunkPages: number): PageChunk[] {
  let at = 0;
  return layout.regions.flatMap((region) => {
    const chunks: PageChunk[] = [];
    for (let page = 0; page < region.pageCount;) {
      const isZero = fills[at] === null;
      const bytes: Buffer[] = [];
      let pageCount = 0;
      while (
        page + pageCount < region.pageCount &&
        pageCount < chunkPages &&
        (fills[at] === null) === isZero
      ) {
        bytes.push(pageBytes(fills[at]!, at));
        pageCount++;
        at++;
      }
      chunks.push({
        firstPage: region.firstPage + page,
        pageCount,
        bytes: isZero ? null : Buffer.concat(bytes),
      });
      page += pageCount;
    }
    return chunks;
  });
}

function pageBytes(fill: Fill, number: number): Buffer {
  const bytes = Buffer.alloc(PAGE, fill ?? 0);
  if (fill !== null) bytes.writeUInt32BE(number);
  return bytes;
}

function content(
  layout: MemoryLayout,
  chunks: readonly PageChunk[],
  devices: Uint8Array = DEVICES,
): StreamContent {
  return {
    machineType: 'pc-i440fx-7.2',
    layout,
    deviceSections: devices,
    // eslint-disable-next-line @typescript-eslint/require-await -- the contract is asynchronous, the test's pages are at hand
    async *pages() {
      for (const chunk of chunks) {
        // As the contract says, the bytes live until the next chunk only.
        const bytes = chunk.bytes === null ? null : Buffer.from(chunk.bytes);
        yield { ...chunk, bytes };
        bytes?.fill(0xee);
      }
    },
  };
}

function source(layout: MemoryLayout, chunks: readonly PageChunk[]): CheckpointSource {
  const written = content(layout, chunks);
  return {
    ...written,
    pagesAsStored: (signal) => written.pages(signal),
    checkpointId: 'c1',
    hypervisor: 'kvm',
    machine: {},
    disks: [],
    deviceState: () => Promise.resolve(BLOB),
  };
}

async function* pieces(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) {
    await Promise.resolve();
    yield bytes.subarray(at, at + size);
  }
}

interface Read extends MigrationStream {
  readonly pages: Map<string, Buffer | null>;
}

async function read(bytes: Buffer, pieceBytes = 65536): Promise<Read> {
  const pages = new Map<string, Buffer | null>();
  const stream = await readMigrationStream(pieces(bytes, pieceBytes), {
    onPage: (block, page, data) => pages.set(`${block.id} ${page}`, data === null ? null : Buffer.from(data)),
  });
  return { ...stream, pages };
}

async function write(
  from: StreamContent,
  options: Parameters<typeof writeMigrationStream>[1] = {},
): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of writeMigrationStream(from, options)) parts.push(part);
  return Buffer.concat(parts);
}

const withCode = (code: string): ReturnType<typeof expect.objectContaining> =>
  expect.objectContaining({ code });

const SMALL = layOut([
  { id: 'pc.ram', sizeBytes: 3 * PAGE },
  { id: '/rom@etc/acpi/tables', sizeBytes: 2 * PAGE },
]);
const SMALL_FILLS: readonly Fill[] = [1, null, 3, null, 5];
const SMALL_CHUNKS = chunksOf(SMALL, SMALL_FILLS, 8);

describe('a migration stream', () => {
  it('reads back as it was written, whatever the memory holds, however it is cut and in whatever order it comes', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1, maxLength: 4 }),
        fc.integer({ min: 1, max: 70 }),
        fc.integer({ min: 1, max: 100_000 }),
        fc.infiniteStream(fc.option(fc.integer({ min: 1, max: 255 }))),
        fc.infiniteStream(fc.nat()),
        async (pageCounts, chunkPages, pieceBytes, stream, order) => {
          const layout = layOut(pageCounts.map((count, i) => ({ id: `block${i}`, sizeBytes: count * PAGE })));
          const fills = [...stream.take(layout.sizeBytes / PAGE)];
          const chunks = chunksOf(layout, fills, chunkPages).map(
            (chunk) => [order.next().value!, chunk] as const,
          );
          const shuffled = chunks.sort(([a], [b]) => a - b).map(([, chunk]) => chunk);
          const written = content(layout, shuffled);
          const bytes = await write(written);
          const found = await read(bytes, Math.max(pieceBytes, bytes.length >> 8));
          expect(found.machineType).toBe('pc-i440fx-7.2');
          expect(found.blocks).toEqual(layout.regions.map(({ id, sizeBytes }) => ({ id, sizeBytes })));
          expect(found.deviceBytes.equals(DEVICES)).toBe(true);
          let number = 0;
          for (const region of layout.regions) {
            for (let page = 0; page < region.pageCount; page++, number++) {
              const got = found.pages.get(`${region.id} ${page}`);
              const fill = fills[number] ?? null;
              if (fill === null) expect(got).toBeNull();
              else expect(got?.equals(pageBytes(fill, number))).toBe(true);
            }
          }
        },
      ),
      { numRuns: 40 },
    );
  });

  it('has exactly these bytes', async () => {
    const layout = layOut([{ id: 'a', sizeBytes: 3 * PAGE }]);
    const bytes = await write(
      content(layout, chunksOf(layout, [7, null, 8], 8), section(3, 'x', Buffer.from([1]))),
    );
    const seven = pageBytes(7, 0).toString('hex');
    const eight = pageBytes(8, 2).toString('hex');
    expect(bytes.toString('hex')).toBe(
      [
        '5145564d 00000003 07 0000000d',
        Buffer.from('pc-i440fx-7.2').toString('hex'),
        '01 00ffff00 03 72616d 00000000 00000004 0000000000003004 01 61 0000000000003000 0000000000000010 7e 00ffff00',
        `03 00ffff00 0000000000000008 01 61 ${seven} 0000000000001022 00 0000000000002028 ${eight}`,
        '0000000000000010 7e 00ffff00',
        '04 00000003 01 78 00000000 00000001 01 7e 00000003',
        '00 06 00000002 7b7d',
      ]
        .join('')
        .replaceAll(' ', ''),
    );
  });

  it('leaves out zero pages of those blocks only that are said to be fresh', async () => {
    const found = await read(
      await write(content(SMALL, SMALL_CHUNKS), { omitZeroPagesOf: (id) => id === 'pc.ram' }),
    );
    expect([...found.pages.keys()]).toEqual([
      'pc.ram 0',
      'pc.ram 2',
      '/rom@etc/acpi/tables 0',
      '/rom@etc/acpi/tables 1',
    ]);
  });

  it('tells how much of the memory is covered, up to all of it', async () => {
    const covered: number[] = [];
    await write(content(SMALL, SMALL_CHUNKS), { onProgress: (bytes) => covered.push(bytes) });
    expect(covered.at(-1)).toBe(SMALL.sizeBytes);
    expect([...covered].sort((a, b) => a - b)).toEqual(covered);
  });

  it('brings no device state before all memory has been read', async () => {
    const seen: string[] = [];
    const from = content(SMALL, SMALL_CHUNKS);
    async function* watched(): AsyncGenerator<PageChunk> {
      yield* from.pages();
      seen.push('all pages');
    }
    const parts = writeMigrationStream(
      { ...from, pages: watched },
      { beforeDeviceState: () => Promise.resolve(void seen.push('hook')) },
    );
    for await (const part of parts) if (part.equals(DEVICES)) seen.push('devices');
    expect(seen).toEqual(['all pages', 'hook', 'devices']);
  });

  it.each<[string, PageChunk[]]>([
    ['a chunk is missing', SMALL_CHUNKS.slice(1)],
    ['a chunk in the middle is missing', SMALL_CHUNKS.filter((_, i) => i !== 1)],
    ['the last chunk is missing', SMALL_CHUNKS.slice(0, -1)],
    ['a chunk comes twice', [...SMALL_CHUNKS, SMALL_CHUNKS[0]!]],
    ['a chunk passes the end of its region', [{ firstPage: 0, pageCount: 4, bytes: null }]],
    ['a chunk has too few bytes', [{ firstPage: 0, pageCount: 3, bytes: Buffer.alloc(PAGE) }]],
    ['there is nothing', []],
  ])('is not finished when %s', async (_, chunks) => {
    const parts: Buffer[] = [];
    const writing = (async () => {
      for await (const part of writeMigrationStream(content(SMALL, chunks))) parts.push(part);
    })();
    await expect(writing).rejects.toThrow(withCode('REPO_DAMAGED'));
    await expect(read(Buffer.concat(parts))).rejects.toThrow(withCode('STREAM_MALFORMED'));
  });

  it('is not finished when the source fails', async () => {
    const damaged = Object.assign(new Error('pack 7 is damaged'), { code: 'REPO_DAMAGED' });
    // eslint-disable-next-line @typescript-eslint/require-await -- the contract is asynchronous
    async function* failing(): AsyncGenerator<PageChunk> {
      yield SMALL_CHUNKS[0]!;
      throw damaged;
    }
    await expect(write({ ...content(SMALL, []), pages: failing })).rejects.toBe(damaged);
  });
});

describe('reading a migration stream', () => {
  it('refuses it cut at any byte', async () => {
    const layout = layOut([{ id: 'a', sizeBytes: 2 * PAGE }]);
    const bytes = await write(content(layout, chunksOf(layout, [7, null], 8)));
    const endOfEof = bytes.length - 7;
    for (let length = 0; length < endOfEof; length += length > 80 && length < 4100 ? 97 : 1) {
      await expect(read(bytes.subarray(0, length))).rejects.toThrow(withCode('STREAM_MALFORMED'));
    }
    expect((await read(bytes.subarray(0, endOfEof))).sections.length).toBe(2);
  });

  it('ends with a result or STREAM_MALFORMED whatever bytes are changed', async () => {
    const layout = layOut([{ id: 'a', sizeBytes: 2 * PAGE }]);
    const good = await write(content(layout, chunksOf(layout, [7, null], 8)));
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 6 }),
        async (changes) => {
          const bytes = Buffer.from(good);
          for (const [at, value] of changes) bytes[at] = value;
          const error = await read(bytes).then(
            () => undefined,
            (failure: unknown) => failure,
          );
          if (error !== undefined) expect(error).toMatchObject({ code: 'STREAM_MALFORMED' });
        },
      ),
      { numRuns: 400 },
    );
  });

  const records = (hex: string): Buffer =>
    Buffer.concat([
      HEADER,
      Buffer.from(
        '07 00000001 78 01 00000002 03 72616d 00000000 00000004 0000000000001004 01 61 0000000000001000 0000000000000010 7e 00000002'.replaceAll(
          ' ',
          '',
        ) + hex.replaceAll(' ', ''),
        'hex',
      ),
    ]);
  const end = '0000000000000010 7e 00000002 00';

  it.each([
    ['an XBZRLE record', '02 00000002 0000000000000040 01 61 01 0001 00'],
    ['a compressed page', '02 00000002 0000000000000100 01 61 00000001 00'],
    ['a multifd mark', '02 00000002 0000000000000200'],
    ['a page of an unknown block', `02 00000002 0000000000000002 01 62 00 ${end}`],
    ['a page that continues nothing', `02 00000002 0000000000000022 00 ${end}`],
    ['a page past the end of its block', `02 00000002 0000000000001002 01 61 00 ${end}`],
    ['an absurd offset', `02 00000002 fff0000000001002 01 61 00 ${end}`],
    ['a page filled with something', `02 00000002 0000000000000002 01 61 01 ${end}`],
    ['a part of a section that was not started', '02 00000003'],
    ['a section that is sent live', '01 00000003 05 626c6f636b 00000000 00000001'],
    ['a postcopy command', '08 0003 0010 00'],
    ['no EOF', ''],
  ])('refuses %s', async (_, hex) => {
    await expect(read(records(hex))).rejects.toThrow(withCode('STREAM_MALFORMED'));
  });

  it('takes many parts, a command without meaning here and the last word on a page', async () => {
    const stream = records(
      `02 00000002 0000000000000008 01 61 ${'11'.repeat(PAGE)} 0000000000000010 7e 00000002` +
        `03 00000002 0000000000000002 01 61 00 0000000000000010 7e 00000002 08 000b 0000 00`,
    );
    const found = await read(stream);
    expect(found.pageRecords).toBe(1);
    expect(found.pages.get('a 0')).toBeNull();
  });

  it('needs nobody who takes the pages', async () => {
    const bytes = await write(content(SMALL, SMALL_CHUNKS));
    expect(await readMigrationStream(pieces(bytes, 65536))).toMatchObject({ pageRecords: 3, zeroRecords: 2 });
  });

  it('refuses more device state than it is ready to hold', async () => {
    const bytes = await write(content(SMALL, SMALL_CHUNKS));
    await expect(readMigrationStream(pieces(bytes, 4096), {}, { maxDeviceBytes: 16 })).rejects.toThrow(
      withCode('STREAM_MALFORMED'),
    );
  });
});

describe('device sections', () => {
  it('are what stands between the header and the EOF byte of a blob', () => {
    expect(deviceSections(BLOB).equals(DEVICES)).toBe(true);
  });

  it.each([
    ['empty', Buffer.alloc(0)],
    ['without the magic', Buffer.concat([Buffer.alloc(8), DEVICES, Buffer.from([0])])],
    [
      'of another version',
      Buffer.concat([Buffer.from('5145564d00000004', 'hex'), DEVICES, Buffer.from([0])]),
    ],
    ['cut off', BLOB.subarray(0, -1)],
    ['cut off in a section', Buffer.concat([BLOB.subarray(0, -9), Buffer.from([0])])],
    ['with a configuration in front', Buffer.concat([HEADER, Buffer.from([7]), DEVICES, Buffer.from([0])])],
  ])('are refused from a blob that is %s', (_, blob) => {
    expect(() => deviceSections(blob)).toThrow(withCode('STREAM_MALFORMED'));
  });

  it('are told apart by their footers, even where a body looks like one', () => {
    const tricky = section(5, 'tricky', Buffer.from('7e00000005ffff7e000000050400', 'hex'));
    const { sections } = splitSections(Buffer.concat([tricky, DEVICES]));
    expect(sections.map(({ name }) => name)).toEqual(['tricky', 'timer', 'globalstate']);
  });

  it('have the lengths that the description gives', () => {
    const lengths = sectionLengths(
      JSON.stringify({
        devices: [
          {
            name: 'timer',
            instance_id: 0,
            fields: [{ size: 2 }, { size: 1, array_len: 3 }],
            subsections: [{ vmsd_name: 'timer/x', fields: [{ size: 4 }] }],
          },
        ],
      }),
    );
    expect(lengths('timer', 0)).toBe(2 + 3 + (6 + 'timer/x'.length) + 4);
    expect(lengths('timer', 1)).toBeUndefined();
  });

  it.each([
    '',
    '[]',
    '{"devices":[{}]}',
    '{"devices":[{"name":"a","instance_id":0,"fields":[{"size":-1}]}]}',
  ])('are refused with the description %s', (json) => {
    expect(() => sectionLengths(json)).toThrow(withCode('STREAM_MALFORMED'));
  });

  it('carry the run state that is asked for', () => {
    const paused = withRunState(DEVICES, 'paused');
    expect(paused.subarray(-globalState('').length).equals(globalState('paused'))).toBe(true);
    expect(withRunState(paused, 'running').equals(DEVICES)).toBe(true);
  });

  it('need a global state to carry one', () => {
    expect(() => withRunState(section(1, 'x', Buffer.alloc(200)), 'paused')).toThrow(
      withCode('STREAM_MALFORMED'),
    );
  });
});

describe('pushing a stream', () => {
  it('goes at the pace of the receiver', async () => {
    let produced = 0;
    let taken = 0;
    let mostAhead = 0;
    // eslint-disable-next-line @typescript-eslint/require-await -- produced without waiting, which is what back pressure is for
    async function* fast(): AsyncGenerator<Buffer> {
      for (let i = 0; i < 64; i++) {
        produced += 1 << 20;
        mostAhead = Math.max(mostAhead, produced - taken);
        yield Buffer.alloc(1 << 20);
      }
    }
    const slow = new Writable({
      write: (bytes: Buffer, _, done) => {
        setImmediate(() => {
          taken += bytes.length;
          done();
        });
      },
    });
    expect(await pushStream(fast(), slow)).toBe(64 << 20);
    expect(taken).toBe(64 << 20);
    expect(mostAhead).toBeLessThanOrEqual(4 << 20);
  });

  it('ends with the error of the receiver and lets go of the source', async () => {
    let released = false;
    async function* endless(): AsyncGenerator<Buffer> {
      try {
        for (;;) yield await Promise.resolve(Buffer.alloc(1 << 20));
      } finally {
        released = true;
      }
    }
    const broken = new Writable({
      write: (_bytes, _encoding, done) => setImmediate(done, new Error('no space')),
    });
    await expect(pushStream(endless(), broken)).rejects.toThrow('no space');
    expect(released).toBe(true);
  });

  it('ends when it is aborted while the receiver is stuck', async () => {
    const abort = new AbortController();
    const stuck = new Writable({ write: () => setImmediate(() => abort.abort(new Error('enough'))) });
    const stream = pieces(Buffer.alloc(8 << 20), 1 << 20);
    await expect(pushStream(stream, stuck, abort.signal)).rejects.toThrow('enough');
  });
});

describe('an export for QEMU', () => {
  it('is the complete stream', async () => {
    const parts: Buffer[] = [];
    const sink = new Writable({
      write: (bytes: Buffer, _, done) => {
        parts.push(bytes);
        done();
      },
    });
    const bytes = await exportCheckpoint(source(SMALL, SMALL_CHUNKS), EXPORT_FORMATS[0]!, sink);
    expect(bytes).toBe(Buffer.concat(parts).length);
    expect((await read(Buffer.concat(parts))).pages.size).toBe(5);
    expect(sink.writableEnded).toBe(false);
  });

  it('is refused in a format that nobody knows', async () => {
    const sink = new Writable({ write: (_bytes, _encoding, done) => done() });
    await expect(exportCheckpoint(source(SMALL, SMALL_CHUNKS), 'vhd', sink)).rejects.toThrow(
      withCode('USAGE'),
    );
  });
});
