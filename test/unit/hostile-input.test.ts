/**
 * What somebody writes who may write files, answers or streams that Cairn reads: each ends by a code that says what is wrong,
 * before anything is allocated for it. `test/fuzz` looks for more of the kind.
 */

import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { parseCommandLine } from '../../adapters/disks/qcow2/command-line.js';
import { diskReferences } from '../../adapters/disks/qcow2/restore-disk-options.js';
import { importMigration } from '../../adapters/kvm/import.js';
import { restoredCommandLine } from '../../adapters/kvm/restore/argv.js';
import { DomainAgent } from '../../adapters/libvirt/qemu/domain-agent.js';
import { splitSections } from '../../adapters/qemu/stream/sections.js';
import { sectionLengths } from '../../adapters/qemu/stream/vm-description.js';
import { importSaveFile } from '../../adapters/xen/import.js';
import { readSaveFile } from '../../adapters/xen/stream/reader.js';
import { StateRecords } from '../../adapters/xen/stream/records.js';
import { saveContentOf } from '../../adapters/xen/stream/save-file.js';
import { encodeDeviceState } from '../../adapters/xen/stream/device-state.js';
import { layoutOf } from '../../adapters/xen/domain/physmap.js';
import { GrowingBitmap } from '../../src/bitmap/growing-bitmap.js';
import { decodeManifest, encodeManifest } from '../../src/format/manifest.js';
import { openSealedJson, sealJson } from '../../src/format/sealed-json.js';
import { compress, decompress } from '../../src/ffi/zstd.js';
import { readProcessText } from '../../src/host/process-text.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { MemoryFile } from '../../src/intake/memory-file.js';
import { parseJson } from '../../src/records/json-text.js';
import { loadSealed } from '../../src/repository/read/load-sealed.js';
import { PageMap } from '../../src/repository/read/page-map.js';
import type { StorageBackend } from '../../src/storage/backend.js';
import { decodeHeader, encodeHeader, FILE_HEADER_BYTES } from '../../src/study/trace/trace-format.js';
import type { Json } from '../../src/types.js';
import { goldenObjects, readPart, withPart } from '../fuzz/resealed-repository.js';
import { guestConfig, pvhState, smallMigration, smallSaveFiles } from '../fuzz/small-machines.js';

const PAGE = 4096;
const TIB = 2 ** 40;
const DEEP = `${'['.repeat(100_000)}${']'.repeat(100_000)}`;
/** What `String` and `Number` cannot make anything of. */
const NOTHING_TO_CALL = { toString: 1, valueOf: 1 };

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-hostile-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

// eslint-disable-next-line @typescript-eslint/require-await -- a stream is read asynchronously
async function* stream(...pieces: readonly Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* pieces;
}

describe('JSON', () => {
  it('that is nested deeper than anything of ours is refused before it is parsed', () => {
    expect(() => parseJson(DEEP)).toThrow(RangeError);
    expect(parseJson(`{"a":"${'['.repeat(1000)}\\"["}`)).toEqual({ a: `${'['.repeat(1000)}"[` });
  });

  it('may be as deep as its reader says, and have as many values', () => {
    const nested = (depth: number): string => `${'['.repeat(depth)}${']'.repeat(depth)}`;
    const limits = { maxDepth: 3, maxValues: 5 };
    expect(parseJson(nested(3), limits)).toEqual([[[]]]);
    expect(() => parseJson(nested(4), limits)).toThrow('nested deeper than 3');
    expect(parseJson('["a,b,c", 1, 2, 3]', limits)).toEqual(['a,b,c', 1, 2, 3]);
    expect(() => parseJson('[1, 2, 3, 4, 5]', limits)).toThrow('more than 5 values');
    expect(parseJson(nested(500))).toBeDefined();
    expect(() => parseJson(nested(501))).toThrow('nested deeper than 500');
    for (const text of ['[', '"', '{"a"', '"\\']) expect(() => parseJson(text)).toThrow(SyntaxError);
  });

  it('of a sealed record that is nested without end is damage', () => {
    const bytes = Buffer.from(sealJson({ a: 'PLACE' }));
    expect(openSealedJson('config', bytes)).toEqual({ a: 'PLACE' });
    const golden = goldenObjects();
    const part = { key: 'config', part: 'text', frame: 0, fits: true } as const;
    const deep = withPart(golden, part, Buffer.from(`{"a":${DEEP}}`)).get('config')!;
    expect(() => openSealedJson('config', deep)).toThrow(expect.objectContaining({ code: 'REPO_DAMAGED' }));
  });
});

describe('a manifest', () => {
  const KEY = 'vms/web1/checkpoints/0000000a-4405c7d14db23518';
  const part = { key: KEY, part: 'text', frame: 0, fits: true } as const;

  function decoded(change: (json: string) => string): unknown {
    const golden = goldenObjects();
    const json = change(readPart(golden, part)!.toString('utf8'));
    return decodeManifest(KEY, 'web1', withPart(golden, part, Buffer.from(json)).get(KEY)!);
  }

  it('is read as it is', () => {
    expect(decoded((json) => json)).toMatchObject({ id: '4405c7d14db23518' });
  });

  it.each([
    ['yesterday', 'time'],
    ['2026-13-45T00:00:00Z', 'time'],
  ])('of the time %s is damaged: what is kept goes by times', (time, field) => {
    expect(() => decoded((json) => json.replace(/"time":"[^"]*"/, `"time":"${time}"`))).toThrow(
      expect.objectContaining({ code: 'REPO_DAMAGED', message: expect.stringContaining(`field ${field}`) }),
    );
  });

  it('with a NUL in the path of a disk is damaged', () => {
    expect(() => decoded((json) => json.replace('/srv/web1.qcow2', '/srv/\\u0000'))).toThrow(
      expect.objectContaining({ code: 'REPO_DAMAGED', message: expect.stringContaining('path') }),
    );
  });

  it('of a whole 16 TiB, for which there are no page indexes, is damaged', () => {
    expect(() => decoded((json) => json.replace('614400', String(16 * TIB)))).toThrow(
      expect.objectContaining({ code: 'REPO_DAMAGED' }),
    );
  });

  it('that could not be read back is not written', () => {
    const manifest = decoded((json) => json) as Parameters<typeof encodeManifest>[0];
    const machine = { argv: [Buffer.alloc(65 << 20, 'a').toString('latin1')] };
    expect(() => encodeManifest({ ...manifest, machine })).toThrow(
      expect.objectContaining({ code: 'VM_UNSUPPORTED', hint: expect.stringContaining('command line') }),
    );
  });
});

describe('lengths in a repository', () => {
  it('give zstd no room that its input cannot fill', () => {
    const packed = compress(Buffer.alloc(1 << 20), 3);
    expect(decompress(packed, 1 << 20)).toHaveLength(1 << 20);
    expect(() => decompress(packed, 2 ** 40)).toThrow(expect.objectContaining({ code: 'ZSTD_FAILED' }));
  });

  it('of a record that cannot be one are not read', async () => {
    const backend = { stat: () => Promise.resolve({ key: 'config', sizeBytes: 8 * TIB }) };
    await expect(loadSealed(backend as unknown as StorageBackend, 'config', {})).rejects.toMatchObject({
      code: 'REPO_DAMAGED',
    });
  });

  it('that make a map too large for this host end by code', () => {
    expect(() => new PageMap(2 ** 40)).toThrow(expect.objectContaining({ code: 'VM_UNSUPPORTED' }));
  });
});

describe('a migration stream', () => {
  /** One block of so many bytes, and of them nothing. */
  function hollow(sizeBytes: number): Buffer {
    const u64 = (value: number): Buffer => {
      const bytes = Buffer.alloc(8);
      bytes.writeBigUInt64BE(BigInt(value));
      return bytes;
    };
    const hex = (text: string): Buffer => Buffer.from(text.replaceAll(' ', ''), 'hex');
    return Buffer.concat([
      hex('5145564d 00000003 07 00000004 70632d31'),
      hex('01 00000000 03 72616d 00000000 00000004'),
      u64(sizeBytes + 4),
      hex('06 70632e72616d'),
      u64(sizeBytes),
      hex('0000000000000010 7e00000000'),
      hex('03 00000000 0000000000000010 7e00000000'),
      hex('04 00000009 05 74696d6572 00000000 00000001 0102 7e00000009'),
      hex('00'),
    ]);
  }

  async function imported(bytes: Uint8Array): Promise<MemoryFile> {
    let memory: MemoryFile | undefined;
    await importMigration({
      format: 'qemu',
      open: () => stream(bytes),
      place: (layout) => (memory = new MemoryFile(layout, join(dir, 'memory'))),
    });
    memory!.checkFilled();
    return memory!;
  }

  it.each([1, 64, 1 / 1024])(
    'that claims %d TiB and holds nothing of it is refused, and takes no room',
    async (tib) => {
      await expect(imported(hollow(tib * TIB))).rejects.toMatchObject({ code: 'STREAM_MALFORMED' });
      for (const name of readdirSync(dir)) expect(statSync(join(dir, name)).size).toBe(0);
    },
  );

  it('with one page at the end of a TiB is refused when that page comes', () => {
    const memory = new MemoryFile(layOut([{ id: 'pc.ram', sizeBytes: TIB }]), join(dir, 'memory'));
    const last = TIB / PAGE - 1;
    expect(() => memory.put(last, Buffer.alloc(PAGE, 1))).toThrow(
      expect.objectContaining({ code: 'STREAM_MALFORMED' }),
    );
    expect(statSync(join(dir, 'memory')).size).toBe(0);
    memory.close();
  });

  it('may leave pages out: what the guest has named as free', async () => {
    const memory = await imported(await smallMigration());
    expect(memory.present.count()).toBe(8);
    memory.close();
    const sparse = new MemoryFile(layOut([{ id: 'pc.ram', sizeBytes: 8 * 2 ** 30 }]), join(dir, 'sparse'));
    sparse.put(2 ** 20, Buffer.alloc(PAGE, 1));
    expect(sparse.present.count()).toBe(1);
    sparse.close();
  });

  it('has a description that is bounded in depth and length', () => {
    const malformed = expect.objectContaining({ code: 'STREAM_MALFORMED' });
    expect(() => sectionLengths(`{"devices":${DEEP}}`)).toThrow(malformed);
    expect(() => sectionLengths(`{"devices":[],"a":"${'a'.repeat(17 << 20)}"}`)).toThrow(malformed);
  });

  it('has no more device sections than a machine has', () => {
    const one = Buffer.from('040000000101410000000000000001' + '7e00000001', 'hex');
    const many = Buffer.concat([...new Array<Buffer>(70_000).fill(one), Buffer.of(0)]);
    expect(() => splitSections(many, () => 0)).toThrow(expect.objectContaining({ code: 'STREAM_MALFORMED' }));
  });
});

describe('a save file of xl', () => {
  async function withConfig(config: string): Promise<Buffer> {
    const file = (await smallSaveFiles())[0]!;
    const json = Buffer.from(`${config}\0`);
    const lengths = Buffer.alloc(8);
    lengths.writeUInt32LE(json.length + 4, 0);
    lengths.writeUInt32LE(json.length, 4);
    return Buffer.concat([file.subarray(0, 44), lengths, json, file.subarray(48 + file.readUInt32LE(44))]);
  }

  function imported(bytes: Uint8Array): Promise<unknown> {
    return importSaveFile({
      format: 'xl',
      open: () => stream(bytes),
      place: (layout) => new MemoryFile(layout, join(dir, 'memory')),
    });
  }

  it.each([
    ['4 PiB', '"max_memkb":64', '"max_memkb":4398046511104'],
    ['more than a number holds', '"max_memkb":64', '"max_memkb":1e999'],
  ])('of a guest that may have %s is refused', async (_, from, to) => {
    await expect(imported(await withConfig(guestConfig('pvh').replace(from, to)))).rejects.toMatchObject({
      code: 'STREAM_MALFORMED',
    });
  });

  it('takes what is no number for none', async () => {
    const config = guestConfig('pvh').replace(
      '"max_memkb":64',
      `"max_memkb":${JSON.stringify(NOTHING_TO_CALL)}`,
    );
    await expect(imported(await withConfig(config))).resolves.toBeDefined();
  });

  it('has a configuration that is bounded in depth', async () => {
    await expect(imported(await withConfig(`{"c_info":${DEEP}}`))).rejects.toMatchObject({
      code: 'STREAM_MALFORMED',
    });
  });

  it('gets no memory for a length that nothing follows', async () => {
    const file = (await smallSaveFiles())[0]!;
    const head = file.subarray(0, 40);
    const lengths = Buffer.alloc(8);
    lengths.writeUInt32LE(64 << 20, 4);
    const before = process.memoryUsage().arrayBuffers;
    const read = readSaveFile(stream(Buffer.concat([head, lengths]))).next();
    await expect(read).rejects.toMatchObject({ code: 'STREAM_MALFORMED' });
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(32 << 20);
  });

  it('has no more state records than a guest has', () => {
    const records = new StateRecords();
    const body = new Uint8Array(0);
    expect(() => {
      for (let i = 0; i < 70_000; i++) records.add({ type: 1, body });
    }).toThrow(expect.objectContaining({ code: 'STREAM_MALFORMED' }));
  });

  it.each([1e20, -1, 'x', NOTHING_TO_CALL])(
    'is not made of a checkpoint of Xen version %p',
    async (xenMajor) => {
      const layout = layoutOf([{ firstFrame: 0, frameCount: 512 }]);
      const machine = { config: JSON.parse(guestConfig('pvh')) as Json, xenMajor, xenMinor: 17 };
      const source = {
        ...{ checkpointId: 'c', hypervisor: 'xen', machineType: 'xen-pvh', machine, layout, disks: [] },
        ...{ frozen: undefined, deviceState: () => Promise.resolve(encodeDeviceState(pvhState())) },
        pages: () => {
          throw new Error('pages are not asked for');
        },
        pagesAsStored: () => {
          throw new Error('pages are not asked for');
        },
      };
      await expect(saveContentOf(source, (config) => config)).rejects.toMatchObject({
        code: 'VM_UNSUPPORTED',
      });
    },
  );
});

describe('a command line of QEMU', () => {
  it('may have options with names that objects have', () => {
    expect(parseCommandLine(['-constructor', 'a', '-__proto__', 'b'])).toEqual([
      { name: 'constructor', spelling: '-constructor', value: 'a' },
      { name: '__proto__', spelling: '-__proto__', value: 'b' },
    ]);
  });

  it('with an option that lacks its value is refused: it would take -incoming for it', () => {
    const machine = {
      ...{
        argv: ['-m', '1G', '-name'],
        cwd: '/',
        program: '/q',
        env: {},
        rights: undefined,
        presentDisks: undefined,
        presentObjects: [],
        qemuVersion: '',
      },
      ...{ machineType: 'pc-i440fx-7.2', qmpPath: '/run/q.sock' },
    };
    const request = { setArgs: [], dropArgs: [], socketPath: undefined, paused: false };
    expect(() => restoredCommandLine(machine, request)).toThrow(
      expect.objectContaining({ code: 'VM_UNSUPPORTED', message: expect.stringContaining('-name') }),
    );
    const mended = restoredCommandLine(machine, { ...request, setArgs: ['-name=web1', '-snapshot'] });
    expect(mended.options.at(-1)).toMatchObject({ name: 'incoming', value: 'defer' });
  });

  it('names no disk where its JSON is none', () => {
    const options = parseCommandLine([
      '-blockdev',
      '{"driver":',
      '-blockdev',
      `{"a":${DEEP}}`,
      '-hda',
      '/a.img',
    ]);
    expect(diskReferences(options, '/').map(({ path }) => path)).toEqual(['/a.img']);
  });
});

describe('what a process says of itself', () => {
  it('is read up to the length that a program can be started with', async () => {
    expect(await readProcessText('/proc/self/cmdline')).toContain('node');
    await expect(readProcessText('/dev/zero')).rejects.toMatchObject({ code: 'VM_UNSUPPORTED' });
  });
});

describe("an answer of a guest's agent", () => {
  it.each(['no JSON', '', DEEP, '[]', '{"error":{"desc":{"toString":1}}}'])(
    'that is none is said to be none (%#)',
    async (answer) => {
      const agent = new DomainAgent({ name: 'web1', agentCommand: () => Promise.resolve(answer) });
      await expect(agent.command('guest-ping', 1000)).rejects.toMatchObject({ code: 'GUEST_AGENT' });
    },
  );
});

describe('the header of a trace', () => {
  it.each(['null', '7', '{"epochMs":1,"regions":[null]}', '{"epochMs":1,"regions":[7]}'])(
    '%s is none',
    (json) => {
      const trace = {
        workload: '',
        description: '',
        hypervisor: '',
        machineType: '',
        tracker: '',
        recorded: '',
      };
      const layout = layOut([{ id: 'a', sizeBytes: PAGE }]);
      const whole = Buffer.from(encodeHeader({ ...trace, epochMs: 1, layout }));
      const bytes = Buffer.concat([whole.subarray(0, FILE_HEADER_BYTES), Buffer.from(json)]);
      expect(() => decodeHeader(sealedTrace(bytes), 'a.trace')).toThrow(
        expect.objectContaining({ code: 'TRACE_MALFORMED' }),
      );
    },
  );
});

function sealedTrace(bytes: Buffer): Buffer {
  bytes.writeUInt32LE(bytes.length - FILE_HEADER_BYTES, 12);
  createHash('sha256')
    .update(bytes.subarray(0, 16))
    .update(bytes.subarray(FILE_HEADER_BYTES))
    .digest()
    .copy(bytes, 16);
  return bytes;
}

describe('a bitmap that grows', () => {
  it('is as long as its highest page, and counts each once', () => {
    const bitmap = new GrowingBitmap();
    for (const page of [3, 3, 70_000]) bitmap.set(page);
    expect([bitmap.count, bitmap.has(3), bitmap.has(4), bitmap.has(1e9)]).toEqual([2, true, false, false]);
    expect([...bitmap.over(70_016).toRuns()]).toEqual([3, 1, 70_000, 1]);
  });
});
