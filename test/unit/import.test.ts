import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { captureHvmState } from '../../adapters/xen/stream/device-state.js';
import { XenDomain } from '../../adapters/xen/domain/domain.js';
import { layoutOf } from '../../adapters/xen/domain/physmap.js';
import { GUEST_TYPE, LIBXC_RECORD, LIBXL_RECORD } from '../../adapters/xen/stream/format.js';
import { encodeRecord } from '../../adapters/xen/stream/records.js';
import { writeSaveFile } from '../../adapters/xen/stream/writer.js';
import { readMigrationStream } from '../../adapters/qemu/stream/reader.js';
import { writeMigrationStream } from '../../adapters/qemu/stream/writer.js';
import type { PageChunk } from '../../src/hypervisor/restore.js';
import { layOut, type MemoryLayout } from '../../src/hypervisor/memory-layout.js';
import { importCheckpoint } from '../../src/intake/import.js';
import { hypervisors } from '../../src/index.js';
import { Repository } from '../../src/repository/repository.js';
import { exportCheckpoint } from '../../src/restore/restore.js';
import { openBackend } from '../../src/storage/open.js';
import { FakeXen } from '../support/fake-xen.js';

const PAGE = 4096;
const UUID = '01234567-89ab-cdef-0123-456789abcdef';
const CONFIG = JSON.stringify({
  c_info: { type: 'pvh', name: 'web1', uuid: UUID },
  b_info: { max_memkb: 2048 * 4 },
});
const HVM_CONFIG = CONFIG.replace('"pvh"', '"hvm"');
const DEVICES = Buffer.concat([
  Buffer.from('0400000009', 'hex'),
  Buffer.from('\x0bglobalstate', 'latin1'),
  Buffer.from('0000000000000001', 'hex'),
  Buffer.from('00000008', 'hex'),
  Buffer.from('running\0'.padEnd(100, '\0'), 'latin1'),
  Buffer.from('7e00000009', 'hex'),
]);

/** Pages hold their own number; every seventh is zero. */
// eslint-disable-next-line @typescript-eslint/require-await -- the shape of a checkpoint's pages
async function* pagesOf(layout: MemoryLayout, salt = 0): AsyncGenerator<PageChunk> {
  for (const { firstPage, pageCount } of layout.regions) {
    const bytes = Buffer.alloc(pageCount * PAGE);
    for (let i = 0; i < pageCount; i++) {
      const page = firstPage + i;
      if (page % 7 !== 0) bytes.fill(1 + ((page + salt) % 250), i * PAGE, (i + 1) * PAGE);
    }
    yield { firstPage, pageCount, bytes };
  }
}

async function bytesOf(parts: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const all: Uint8Array[] = [];
  for await (const part of parts) all.push(Buffer.from(part));
  return Buffer.concat(all);
}

function saveFile(config = CONFIG, salt = 0, emulator?: Uint8Array): Promise<Buffer> {
  const layout = layoutOf([
    { firstFrame: 0, frameCount: 2048 },
    { firstFrame: 0xfee00, frameCount: 512 },
  ]);
  const xen = new FakeXen();
  const domain = new XenDomain(xen, xen.domid);
  const captured = captureHvmState(domain, Uint32Array.of(0, 16, 17, 1400, 0xfeff8, 8));
  const state = emulator === undefined ? captured : { ...captured, emulator };
  const version = { major: 4, minor: 17 };
  return bytesOf(writeSaveFile({ config, version, state, layout, pages: pagesOf(layout, salt) }));
}

/** Of a PV guest whose every third frame is a page table; `width` is that of its words, in bytes. */
function pvSaveFile(width: number, type = 'pv'): Promise<Buffer> {
  const config = { c_info: { type, name: 'web1', uuid: UUID }, b_info: { max_memkb: 2048 * 4 } };
  const layout = layoutOf([{ firstFrame: 0, frameCount: 2048 }]);
  const presentFrames = Uint32Array.of(0, 100, 200, 1000);
  const record = (type: number, ...bytes: number[]) => ({ type, body: Uint8Array.from(bytes) });
  const state = {
    guestType: GUEST_TYPE.pv,
    presentFrames,
    pageTypes: Uint8Array.from({ length: 1100 }, (_, i) => (i % 3 === 0 ? 1 : 0)),
    before: [
      record(LIBXC_RECORD.pvInfo, width, 4, 0, 0, 0, 0, 0, 0),
      record(LIBXC_RECORD.cpuidPolicy, 1, 2, 3),
    ],
    after: [
      record(LIBXC_RECORD.pvFrames, 0, 0, 0, 0, 255, 7, 0, 0),
      record(LIBXC_RECORD.tscInfo, 1),
      record(LIBXC_RECORD.sharedInfo, 2),
      record(LIBXC_RECORD.vcpuBasic, 3),
    ],
  };
  const version = { major: 4, minor: 17 };
  const pages = pagesOf(layout);
  return bytesOf(writeSaveFile({ config: JSON.stringify(config), version, state, layout, pages }));
}

function migration(): Promise<Buffer> {
  const layout = layOut([
    { id: 'pc.ram', sizeBytes: 600 * PAGE },
    { id: 'vga.vram', sizeBytes: 33 * PAGE },
  ]);
  return bytesOf(
    writeMigrationStream({
      machineType: 'pc-i440fx-7.2',
      layout,
      deviceSections: DEVICES,
      pages: () => pagesOf(layout),
    }),
  );
}

/** What a stream says, however its records are cut: blocks, device sections, a digest of each page that is not zero. */
async function contentOf(stream: Uint8Array) {
  const pages = new Map<string, string>();
  const { machineType, blocks, deviceBytes } = await readMigrationStream(Readable.from([stream]), {
    onPage: ({ id }, page, bytes) => {
      const isZero = bytes === null || bytes.every((byte) => byte === 0);
      if (!isZero) pages.set(`${id}:${page}`, createHash('sha256').update(bytes).digest('hex'));
    },
  });
  return { machineType, blocks, deviceBytes: deviceBytes.toString('hex'), pages };
}

describe('an import', () => {
  let dir: string;
  let repository: Repository;

  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'cairn-import-test-'));
    repository = await Repository.init(openBackend(join(dir, 'repo')));
  });
  afterEach(async () => {
    await repository.backend.close();
    rmSync(dir, { recursive: true, force: true });
  });

  async function imported(format: string, bytes: Uint8Array, name?: string) {
    const path = join(dir, 'file');
    writeFileSync(path, bytes);
    const temp = mkdtempSync(join(dir, 'temp-'));
    try {
      const all = { repository, hypervisors: hypervisors(), format, path, name, tempDir: temp, workers: 1 };
      return await importCheckpoint(all);
    } finally {
      expect(readdirSync(temp)).toEqual([]);
    }
  }

  async function exported(checkpointId: string, format: string): Promise<Buffer> {
    const path = join(dir, `${checkpointId}.out`);
    const manifest = await repository.find(checkpointId);
    await exportCheckpoint({ repository, hypervisors: hypervisors(), manifest }, { format, path });
    return readFileSync(path);
  }

  it('of an xl save file is a base that exports to the same file', async () => {
    const file = await saveFile();
    const summary = await imported('xl', file);
    expect(summary.kind).toBe('base');
    const manifest = await repository.find(summary.checkpointId);
    expect(manifest).toMatchObject({ vmName: 'web1', hypervisor: 'xen', identity: { uuid: UUID } });
    expect((await exported(summary.checkpointId, 'xl')).equals(file)).toBe(true);
  });

  it('of a second file of the same guest stores what differs', async () => {
    const first = await imported('xl', await saveFile());
    const file = await saveFile(CONFIG, 1);
    const second = await imported('xl', file);
    expect(second.parentId).toBe(first.checkpointId);
    expect(second.kind).not.toBe('base');
    expect((await exported(second.checkpointId, 'xl')).equals(file)).toBe(true);
  });

  it('of a migration stream of QEMU is a base that exports to a stream of the same content', async () => {
    const file = await migration();
    const summary = await imported('qemu', file, 'web2');
    const manifest = await repository.find(summary.checkpointId);
    expect(manifest).toMatchObject({ vmName: 'web2', identity: { machineType: 'pc-i440fx-7.2' } });
    const again = await contentOf(await exported(summary.checkpointId, 'qemu'));
    expect(again).toEqual(await contentOf(file));
  });

  it('of a PV guest keeps the types of its pages and the frames of its own table', async () => {
    const file = await pvSaveFile(8);
    const summary = await imported('xl', file);
    const manifest = await repository.find(summary.checkpointId);
    expect(manifest).toMatchObject({ machine: { guestKind: 'pv' }, identity: { machineType: 'xen-pv' } });
    expect((await exported(summary.checkpointId, 'xl')).equals(file)).toBe(true);
  });

  it('refuses a save file of a PV guest of 32 bits', async () => {
    await expect(imported('xl', await pvSaveFile(4))).rejects.toMatchObject({ code: 'VM_UNSUPPORTED' });
  });

  it('of an HVM guest keeps the state of its device model', async () => {
    const file = await saveFile(HVM_CONFIG, 0, Buffer.from('QEVM and so on'));
    const summary = await imported('xl', file);
    const manifest = await repository.find(summary.checkpointId);
    expect(manifest).toMatchObject({ machine: { guestKind: 'hvm' }, identity: { machineType: 'xen-hvm' } });
    expect((await exported(summary.checkpointId, 'xl')).equals(file)).toBe(true);
  });

  it('refuses a save file of an HVM guest without the state of its device model', async () => {
    await expect(imported('xl', await saveFile(HVM_CONFIG))).rejects.toMatchObject({
      code: 'STREAM_MALFORMED',
    });
  });

  it('refuses a save file whose configuration is of another type of guest than its memory', async () => {
    await expect(imported('xl', await pvSaveFile(8, 'pvh'))).rejects.toMatchObject({
      code: 'STREAM_MALFORMED',
    });
  });

  it('refuses a save file of another guest with the state of a device model', async () => {
    const file = await saveFile(CONFIG, 0, Buffer.from('QEVM'));
    await expect(imported('xl', file)).rejects.toMatchObject({ code: 'STREAM_MALFORMED' });
  });

  it.each([
    ['another device model', LIBXL_RECORD.emulatorContext, '0100000000000000'],
    ['memory that it moved', LIBXL_RECORD.emulatorXenstore, '0200000000000000'],
    ['too short a record', LIBXL_RECORD.emulatorContext, '02000000'],
  ])('refuses a save file of an HVM guest with %s', async (_, type, body) => {
    const file = await saveFile(HVM_CONFIG);
    const emulator = encodeRecord({ type, body: Buffer.from(body, 'hex') });
    const withEmulator = Buffer.concat([file.subarray(0, -8), emulator, file.subarray(-8)]);
    await expect(imported('xl', withEmulator)).rejects.toMatchObject({ code: 'VM_UNSUPPORTED' });
  });

  it.each([
    ['xl', () => saveFile()],
    ['qemu', migration],
  ] as const)('leaves no checkpoint of an %s file that ends too early', async (format, make) => {
    const file = await make();
    const cut = file.subarray(0, file.length - 300);
    await expect(imported(format, cut, 'web3')).rejects.toMatchObject({ code: 'STREAM_MALFORMED' });
    await expect(repository.find('latest')).rejects.toMatchObject({ code: 'CHECKPOINT_NOT_FOUND' });
  });

  it('refuses a format that nobody reads, and a file that is not there', async () => {
    await expect(imported('raw', Buffer.alloc(8))).rejects.toMatchObject({ code: 'USAGE' });
    const path = join(dir, 'nothing');
    await expect(
      importCheckpoint({ repository, hypervisors: hypervisors(), format: 'xl', path }),
    ).rejects.toMatchObject({ code: 'USAGE' });
  });
});
