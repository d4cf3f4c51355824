/** Files of other tools that `import` takes, and what it says of those that it does not take. */

import { execFileSync, spawnSync } from 'node:child_process';
import { createReadStream, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { COMPRESSIONS, type Compression } from '../../adapters/qemu/packed/compressions.js';
import { unpacked } from '../../adapters/qemu/packed/unpack.js';
import { readMigrationStream } from '../../adapters/qemu/stream/reader.js';
import { MAX_BLOB_BYTES } from '../../src/format/frame.js';
import { HeadedBytes } from '../../src/hypervisor/byte-source.js';
import { MAX_DEVICE_STATE_BYTES, refuseHugeState } from '../../src/hypervisor/device-state.js';
import { importCheckpoint } from '../../src/intake/import.js';
import { hypervisors } from '../../src/index.js';
import { Repository } from '../../src/repository/repository.js';
import { exportCheckpoint } from '../../src/restore/restore.js';
import { openBackend } from '../../src/storage/open.js';
import { SMALL_LAYOUT, smallMigration, smallSaveFiles } from '../fuzz/small-machines.js';
import {
  capabilities,
  DOMAIN_UUID,
  DOMAIN_XML,
  mappedMigration,
  saveImage,
  type SaveImageParts,
} from '../support/import-files.js';

const PAGE = 4096;
const installed = COMPRESSIONS.filter(({ name }) => spawnSync(name, ['--version']).status === 0);
for (const { name } of COMPRESSIONS)
  if (!installed.some((compression) => compression.name === name))
    process.stderr.write(`skipped: files of ${name}, which is not installed\n`);

function packed({ name }: Pick<Compression, 'name'>, bytes: Uint8Array): Buffer {
  return execFileSync(name, ['-c'], { input: bytes, maxBuffer: 1 << 28 });
}

/** Behind the machine type of a stream. */
async function withSubsection(subsection: Buffer): Promise<Buffer> {
  const plain = await smallMigration();
  const at = 13 + plain.readUInt32BE(9);
  return Buffer.concat([plain.subarray(0, at), subsection, plain.subarray(at)]);
}

async function replaced(from: string, to: string): Promise<Buffer> {
  const plain = Buffer.from(await smallMigration());
  const [search, other] = [Buffer.from(from, 'hex'), Buffer.from(to, 'hex')];
  const at = plain.indexOf(search);
  expect(at).toBeGreaterThan(0);
  return Buffer.concat([plain.subarray(0, at), other, plain.subarray(at + search.length)]);
}

let dir: string;
let repository: Repository;
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-import-files-'));
  repository = await Repository.init(openBackend(join(dir, 'repo')));
});
afterEach(async () => {
  await repository.backend.close();
  rmSync(dir, { recursive: true, force: true });
});

/** Imports the bytes as a file, and looks that no memory is left behind. */
async function imported(bytes: Uint8Array, options: { format?: string; name?: string } = {}) {
  const path = join(dir, 'file');
  writeFileSync(path, bytes);
  const temp = mkdtempSync(join(dir, 'temp-'));
  try {
    const all = { repository, hypervisors: hypervisors(), path, tempDir: temp, workers: 1, ...options };
    const summary = await importCheckpoint(all);
    return { summary, manifest: await repository.find(summary.checkpointId) };
  } finally {
    expect(readdirSync(temp)).toEqual([]);
  }
}

async function memoryOf(checkpointId: string): Promise<Buffer> {
  const reader = repository.reader(await repository.find(checkpointId));
  const memory = Buffer.alloc(SMALL_LAYOUT.pageSpan * PAGE);
  for await (const { firstPage, bytes } of reader.pages())
    if (bytes !== null) memory.set(bytes, firstPage * PAGE);
  return memory;
}

/** As `pagesOf` of the small machines fills it. */
function expectedMemory(): Buffer {
  const memory = Buffer.alloc(SMALL_LAYOUT.pageSpan * PAGE);
  for (const { firstPage, pageCount } of SMALL_LAYOUT.regions)
    for (let page = firstPage; page < firstPage + pageCount; page++)
      if (page % 2 === 1) memory.fill(page, page * PAGE, (page + 1) * PAGE);
  return memory;
}

describe('a save image of libvirt', () => {
  it('becomes a checkpoint of the domain, by its name and uuid, with its description', async () => {
    const { summary, manifest } = await imported(saveImage(await smallMigration()), { format: 'libvirt' });
    expect(manifest).toMatchObject({
      vmName: 'web1',
      hypervisor: 'libvirt',
      identity: { uuid: DOMAIN_UUID, machineType: 'pc-i440fx-7.2' },
      machine: { domainXml: DOMAIN_XML },
      runState: 'running',
    });
    expect(manifest.hostSeal).toBeUndefined();
    expect(summary.warnings).toEqual([expect.stringContaining('vda (/srv/web1.qcow2)')]);
    expect((await memoryOf(summary.checkpointId)).equals(expectedMemory())).toBe(true);
  });

  it('is exported as an image that is imported to the same checkpoint', async () => {
    const { manifest } = await imported(saveImage(await smallMigration()));
    const path = join(dir, 'again');
    await exportCheckpoint({ repository, hypervisors: hypervisors(), manifest }, { format: 'libvirt', path });
    const summary = await importCheckpoint({ repository, hypervisors: hypervisors(), path, workers: 1 });
    expect(summary).toMatchObject({ parentId: manifest.id, changedBytes: 0 });
  });

  it.each<[string, SaveImageParts]>([
    ['without a cookie', { cookie: false }],
    ['of a host of the other byte order', { bigEndian: true }],
    ['of version 1, which has no compression', { version: 1, format: 3 }],
  ])('%s is the same', async (_, parts) => {
    const { summary } = await imported(saveImage(await smallMigration(), parts));
    expect((await memoryOf(summary.checkpointId)).equals(expectedMemory())).toBe(true);
  });

  it('of a paused domain is restored paused', async () => {
    const { manifest } = await imported(saveImage(await smallMigration(), { wasRunning: 0 }));
    expect(manifest.runState).toBe('paused');
  });

  it.each(installed)('compressed by $name is the same', async (compression) => {
    const format = COMPRESSIONS.indexOf(compression) + 1;
    const { summary } = await imported(saveImage(packed(compression, await smallMigration()), { format }));
    expect((await memoryOf(summary.checkpointId)).equals(expectedMemory())).toBe(true);
  });

  it('that is sparse is the same', async () => {
    const front = saveImage(new Uint8Array(0), { format: 6 });
    const { summary } = await imported(await mappedMigration(front));
    expect((await memoryOf(summary.checkpointId)).equals(expectedMemory())).toBe(true);
  });

  const stream = (): Promise<Buffer> => smallMigration();
  it.each<[string, RegExp, () => Promise<Buffer>]>([
    [
      'that libvirt has not finished',
      /not finished/,
      async () => saveImage(await stream(), { magic: 'LibvirtQemudPart' }),
    ],
    ['of a version to come', /version 3/, async () => saveImage(await stream(), { version: 3 })],
    ['of a format to come', /format 7/, async () => saveImage(await stream(), { format: 7 })],
    ['that ends in its header', /ends in its header/, async () => saveImage(await stream()).subarray(0, 40)],
    [
      'that ends in its XML',
      /ends in its domain XML/,
      async () => saveImage(await stream()).subarray(0, 400),
    ],
    [
      'that says gzip of what is not',
      /gzip cannot unpack/,
      async () => saveImage(await stream(), { format: 1 }),
    ],
    [
      'whose stream is cut off',
      /cut off|ends too early/,
      async () => saveImage(await stream()).subarray(0, -300),
    ],
    [
      'whose compressed stream is cut off',
      /gzip cannot unpack/,
      async () => saveImage(packed({ name: 'gzip' }, await stream()), { format: 1 }).subarray(0, -30),
    ],
    ['of XML that has no end', /no end/, async () => withData(await stream(), (data) => data.fill(0x20))],
    ['that claims 4 GiB of XML', /not sensible/, async () => withNumber(20, 0xffffffff, await stream())],
    [
      'whose cookie lies behind its XML',
      /not sensible/,
      async () => withNumber(32, 0x7fffffff, await stream()),
    ],
  ])('%s is refused', async (_, text, make) => {
    await expect(imported(await make(), { format: 'libvirt' })).rejects.toMatchObject({
      code: 'STREAM_MALFORMED',
      message: expect.stringMatching(text),
      hint: expect.stringMatching(/\w/),
    });
    await expect(repository.find('latest')).rejects.toMatchObject({ code: 'CHECKPOINT_NOT_FOUND' });
  });

  it.each(['not XML at all', '<network/>', '<domain><uuid/></domain>', '<!DOCTYPE a><domain/>'])(
    'of %s is refused',
    async (xml) => {
      const image = saveImage(await smallMigration(), { xml });
      await expect(imported(image)).rejects.toMatchObject({ code: 'VM_UNSUPPORTED' });
    },
  );

  function withNumber(at: number, value: number, bytes: Uint8Array): Buffer {
    const image = saveImage(bytes);
    image.writeUInt32LE(value, at);
    return image;
  }

  function withData(bytes: Uint8Array, change: (data: Buffer) => void): Buffer {
    const image = saveImage(bytes, { cookie: false });
    change(image.subarray(92, 92 + image.readUInt32LE(20)));
    return image;
  }
});

describe('a migration stream in a file', () => {
  it.each(installed)('compressed by $name is unpacked by itself', async (compression) => {
    const { summary, manifest } = await imported(packed(compression, await smallMigration()), {
      name: 'web1',
    });
    expect(manifest).toMatchObject({ hypervisor: 'kvm', vmName: 'web1' });
    expect((await memoryOf(summary.checkpointId)).equals(expectedMemory())).toBe(true);
  });

  it('of mapped-ram is read from its places', async () => {
    const { summary, manifest } = await imported(await mappedMigration(), { name: 'web1' });
    expect((await memoryOf(summary.checkpointId)).equals(expectedMemory())).toBe(true);
    const plain = await imported(await smallMigration(), { name: 'web1' });
    expect(plain.summary).toMatchObject({ parentId: manifest.id, changedBytes: 0 });
  });

  it('of mapped-ram, compressed afterwards, is read too', async () => {
    const { summary } = await imported(packed({ name: 'gzip' }, await mappedMigration()), { name: 'web1' });
    expect((await memoryOf(summary.checkpointId)).equals(expectedMemory())).toBe(true);
  });

  it('of a paused VM is restored paused, with the state that Cairn stores of any VM', async () => {
    const running = '00000008' + Buffer.from('running\0').toString('hex');
    const paused = '00000007' + Buffer.from('paused\0\0').toString('hex');
    const { manifest } = await imported(await replaced(running, paused), { name: 'web1' });
    expect(manifest.runState).toBe('paused');
    const other = await imported(await smallMigration(), { name: 'web2' });
    expect(manifest.deviceState?.sha256).toBe(other.manifest.deviceState?.sha256);
  });

  it.each<[string, RegExp, () => Promise<Uint8Array>]>([
    ['x-ignore-shared', /x-ignore-shared was on/, () => withSubsection(capabilities('x-ignore-shared'))],
    ['xbzrle', /capability xbzrle off/, () => replaced('0000000000001028', '0000000000001060')],
    ['compress', /capability compress off/, () => replaced('0000000000001028', '0000000000001120')],
    ['multifd', /capability multifd off/, () => replaced('0000000000001028', '0000000000001220')],
    [
      'a channel of multifd',
      /channels .* multifd off/,
      () => Promise.resolve(Buffer.from('1122334400000001'.repeat(9), 'hex')),
    ],
    ['postcopy', /postcopy-ram off/, () => replaced('0400000003', '080003000804000000030400000003')],
    [
      'contents of disks',
      /disks; migrate without -b/,
      () =>
        replaced('0400000003', '01000000030562' + Buffer.from('lock').toString('hex') + '0000000000000001'),
    ],
  ])('with %s is refused by that name', async (_, text, make) => {
    await expect(imported(await make(), { format: 'qemu', name: 'web1' })).rejects.toMatchObject({
      code: 'STREAM_MALFORMED',
      message: expect.stringMatching(text),
    });
  });

  it.each<[string, RegExp, (file: Buffer) => void]>([
    ['of another version', /version 2/, (file) => file.writeUInt32BE(2, headerIn(file))],
    [
      'with pages of another size',
      /pages of 65536/,
      (file) => file.writeBigUInt64BE(65536n, headerIn(file) + 4),
    ],
    [
      'whose bitmap lies before it',
      /over something else/,
      (file) => file.writeBigUInt64BE(7n, headerIn(file) + 12),
    ],
    [
      'whose pages lie over the bitmap',
      /over something else/,
      (file) => file.writeBigUInt64BE(7n, headerIn(file) + 20),
    ],
    [
      'whose pages lie behind its end',
      /too early/,
      (file) => file.writeBigUInt64BE(1n << 50n, headerIn(file) + 20),
    ],
    [
      'with bits past the end',
      /past the end/,
      (file) => file.fill(0xff, headerIn(file) + 28, headerIn(file) + 36),
    ],
  ])('of mapped-ram %s is refused', async (_, text, damage) => {
    const file = await mappedMigration();
    damage(file);
    await expect(imported(file, { name: 'web1' })).rejects.toMatchObject({
      code: 'STREAM_MALFORMED',
      message: expect.stringMatching(text),
    });
  });

  it('of mapped-ram is refused by who receives a stream, where nothing can be read twice', async () => {
    await expect(readMigrationStream(Readable.from([await mappedMigration()]))).rejects.toThrow(/mapped-ram/);
  });

  /** Where the first block has its header. */
  function headerIn(file: Buffer): number {
    return file.indexOf('pc.ram') + 'pc.ram'.length + 8;
  }
});

describe('a file whose format is not given, or given wrong', () => {
  it.each<[string, () => Promise<Uint8Array>, object]>([
    ['an xl save file', async () => (await smallSaveFiles())[0]!, { hypervisor: 'xen' }],
    ['a save image of libvirt', async () => saveImage(await smallMigration()), { hypervisor: 'libvirt' }],
    ['a migration stream', smallMigration, { hypervisor: 'kvm' }],
  ])('is known by its beginning: %s', async (_, make, expected) => {
    expect((await imported(await make(), { name: 'web1' })).manifest).toMatchObject(expected);
  });

  it.each<[string, string, RegExp, () => Promise<Uint8Array>]>([
    [
      'qemu',
      'use --format libvirt',
      /a save image of libvirt, not a migration stream/,
      async () => saveImage(await smallMigration()),
    ],
    [
      'qemu',
      'use --format xl',
      /a file of xl save, not a migration stream/,
      async () => (await smallSaveFiles())[0]!,
    ],
    ['libvirt', 'use --format qemu', /a migration stream of QEMU, not a save image/, smallMigration],
    [
      'xl',
      'use --format qemu',
      /a file compressed by gzip, not a file of xl save/,
      async () => packed({ name: 'gzip' }, await smallMigration()),
    ],
  ])('taken for %s is said to need %s', async (format, hint, text, make) => {
    await expect(imported(await make(), { format, name: 'web1' })).rejects.toMatchObject({
      code: 'STREAM_MALFORMED',
      message: expect.stringMatching(text),
      hint,
    });
  });

  it.each([
    ['a qcow2 image', 'QFI\xfb\0\0\0\x03', /loadvm/],
    ['a dump of memory', '\x7fELF\x02\x01\x01', /virsh save/],
    ["a save image of libvirt's driver of Xen", 'libvirt-xml\n \0 \r\x01', /xen:NAME/],
    ['nothing', 'something else', /known: .*libvirt \(a save image of libvirt\)/],
  ])('is named where it cannot be imported: %s', async (what, bytes, hint) => {
    const failure = imported(Buffer.from(bytes, 'latin1'), { name: 'web1' });
    await expect(failure).rejects.toMatchObject({
      code: 'STREAM_MALFORMED',
      message: expect.stringContaining(what),
      hint: expect.stringMatching(hint),
    });
  });
});

describe('a compressed file', () => {
  it('is unpacked by a program that is not installed: that is said, with the package', async () => {
    const compression = {
      name: 'cairn-no-such' as 'xz',
      magic: Buffer.alloc(1),
      packageName: 'xz-utils',
      args: ['-dc'],
    };
    const reading = unpacked(Readable.from([Buffer.alloc(1 << 20)]), compression, undefined, (bytes) =>
      readMigrationStream(bytes),
    );
    await expect(reading).rejects.toMatchObject({
      code: 'USAGE',
      message: expect.stringContaining('cairn-no-such'),
      hint: expect.stringContaining('xz-utils'),
    });
  });

  it.each(installed)(
    'of $name that is damaged or cut off is refused, in words of the program',
    async (compression) => {
      const whole = packed(compression, await smallMigration());
      const damaged = Buffer.from(whole);
      damaged.fill(0xa5, whole.length >> 1, (whole.length >> 1) + 16);
      for (const bytes of [whole.subarray(0, whole.length - 9), damaged]) {
        await expect(imported(bytes, { name: 'web1' })).rejects.toMatchObject({ code: 'STREAM_MALFORMED' });
      }
    },
  );

  it.each(installed)('of $name ends at once when what is in it is no stream', async (compression) => {
    const zeros = packed(compression, Buffer.alloc(1 << 26));
    await expect(imported(zeros, { name: 'web1' })).rejects.toMatchObject({
      code: 'STREAM_MALFORMED',
      message: expect.stringContaining('QEVM'),
    });
  });

  it('says what went wrong with its source rather than with what came of it', async () => {
    async function* broken(): AsyncGenerator<Uint8Array> {
      yield packed({ name: 'gzip' }, await smallMigration()).subarray(0, 50);
      throw new Error('the disk is gone');
    }
    const reading = unpacked(broken(), COMPRESSIONS[0]!, undefined, (bytes) => readMigrationStream(bytes));
    await expect(reading).rejects.toThrow('the disk is gone');
  });
});

describe('a large device state', () => {
  /** A stream with one more device, whose section is found by its footer. */
  async function withDevice(body: Buffer): Promise<Buffer> {
    const plain = await smallMigration();
    const at = plain.indexOf(Buffer.from('0400000003', 'hex'));
    const head = Buffer.concat([
      Buffer.from('0400000005', 'hex'),
      Buffer.from('\x0avirtio-gpu', 'latin1'),
      Buffer.from('0000000000000001', 'hex'),
    ]);
    const footer = Buffer.from('7e00000005', 'hex');
    return Buffer.concat([plain.subarray(0, at), head, body, footer, plain.subarray(at)]);
  }

  it('of 160 MiB is imported, and comes back as it was', async () => {
    const body = Buffer.alloc(160 << 20);
    for (let i = 0; i < body.length; i += 4096) body.writeUInt32LE(i, i);
    const { summary, manifest } = await imported(await withDevice(body), { name: 'web1' });
    expect(summary.deviceStateBytes).toBeGreaterThan(body.length);
    const path = join(dir, 'out');
    await exportCheckpoint({ repository, hypervisors: hypervisors(), manifest }, { format: 'qemu', path });
    const { sections } = await readMigrationStream(createReadStream(path));
    expect(sections.find(({ name }) => name === 'virtio-gpu')?.body.equals(body)).toBe(true);
  }, 120_000);

  it('may be as large as a blob of the format, and is refused by code beyond', () => {
    expect(MAX_DEVICE_STATE_BYTES).toBe(MAX_BLOB_BYTES);
    expect(() => refuseHugeState(MAX_DEVICE_STATE_BYTES)).not.toThrow();
    expect(() => refuseHugeState(MAX_DEVICE_STATE_BYTES + 1)).toThrow(
      expect.objectContaining({ code: 'VM_UNSUPPORTED' }),
    );
  });
});

describe('bytes whose beginning was looked at', () => {
  const text = async (source: AsyncIterable<Uint8Array>): Promise<string> => {
    const parts: Uint8Array[] = [];
    for await (const part of source) parts.push(part);
    return Buffer.concat(parts).toString();
  };
  const letters = (): Readable => Readable.from([Buffer.from('abc'), Buffer.from('def'), Buffer.from('g')]);

  it('come whole all the same', async () => {
    const source = new HeadedBytes(letters());
    expect(Buffer.from(await source.peek(4)).toString()).toBe('abcd');
    expect(Buffer.from(await source.take(2)).toString()).toBe('ab');
    expect(await text(source)).toBe('cdefg');
  });

  it('are fewer than was asked for where there are no more', async () => {
    const source = new HeadedBytes(letters());
    expect(await source.take(100)).toHaveLength(7);
    expect(await text(source)).toBe('');
  });
});
