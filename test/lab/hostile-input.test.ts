/**
 * Hostile files, given to real processes: each ends with the documented exit code and a message that names the object and a
 * remedy, takes a bounded amount of memory, and leaves nothing behind.
 */

import { spawn } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  createReadStream,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

import { EXIT } from '../../src/cli/exit-codes.js';
import { sha256Hex } from '../../src/format/sealed-json.js';
import { goldenObjects, readPart, withPart, type Part } from '../fuzz/resealed-repository.js';
import { guestConfig, smallMigration, smallRemusStream, smallSaveFiles } from '../fuzz/small-machines.js';
import { mappedMigration, saveImage } from '../support/import-files.js';
import { CAIRN_MAIN } from '../support/cairn-main.js';
import type { CliMessage } from './support/cairn-cli.js';
import { removeWithRepositories } from './support/left-repositories.js';

/** A Cairn that does nothing takes some 80 MiB, one that imports a small guest some 250. */
const MAX_PEAK_MIB = 512;
const PEAK_READER = fileURLToPath(new URL('./support/print-peak.js', import.meta.url));
const GOLDEN = fileURLToPath(new URL('../../../test/golden/repository-v1/repo/', import.meta.url));
const TIB = 2n ** 40n;
/** Name of the copy that is damaged on purpose. */
const DAMAGED = 'damaged';

interface Ended {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly error: CliMessage;
  readonly messages: readonly CliMessage[];
  readonly peakMib: number;
}

let top: string;
let repo: string;
beforeAll(async () => {
  top = mkdtempSync(join(tmpdir(), 'cairn-hostile-'));
  repo = join(top, 'repo');
  mkdirSync(join(top, 'temp'));
  expect((await cairn(['init', '--repo', repo])).exitCode).toBe(0);
});
afterAll(() => removeWithRepositories(top, new Set([join(top, DAMAGED)])));

/** Runs the command line as a process, which prints its peak at its end. */
async function cairn(args: readonly string[], stdinPath?: string): Promise<Ended> {
  const child = spawn(process.execPath, ['--import', PEAK_READER, CAIRN_MAIN, ...args, '--json'], {
    env: { ...process.env, NODE_OPTIONS: '', TMPDIR: join(top, 'temp'), CAIRN_RUNTIME_DIR: join(top, 'run') },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  const texts = { stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (text: string) => (texts.stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (texts.stderr += text));
  child.stdin.on('error', () => undefined);
  if (stdinPath === undefined) child.stdin.end();
  else createReadStream(stdinPath).pipe(child.stdin);
  const [exitCode, signal] = await new Promise<readonly [number | null, NodeJS.Signals | null]>((resolve) => {
    child.once('close', (code, signal) => resolve([code, signal]));
  });
  const lines = `${texts.stdout}\n${texts.stderr}`.split('\n');
  const messages = lines.flatMap((line) => (line.startsWith('{') ? [JSON.parse(line) as CliMessage] : []));
  const error = messages.find(({ message_type }) => message_type === 'error') ?? { message_type: 'none' };
  const peakKib = /^peak (\d+)$/m.exec(texts.stderr)?.[1] ?? '';
  return { exitCode, signal, error, messages, peakMib: Number(peakKib) / 1024 };
}

function expectRefusal(ended: Ended, exitCode: number, code: string, name: RegExp): void {
  expect(ended).toMatchObject({ exitCode, signal: null });
  expect(ended.error).toMatchObject({
    code,
    message: expect.stringMatching(name),
    hint: expect.stringMatching(/\w{3}/),
  });
  expect(ended.peakMib).toBeGreaterThan(20);
  expect(ended.peakMib).toBeLessThan(MAX_PEAK_MIB);
}

/** No checkpoint, no lock, no unfinished object; no unpacked memory either. */
async function expectNothingLeft(): Promise<void> {
  const files = readdirSync(repo, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  expect(files.map(({ name }) => name)).toEqual(['config']);
  expect(readdirSync(join(top, 'temp'))).toEqual([]);
  expect((await cairn(['verify', '--repo', repo])).exitCode).toBe(EXIT.ok);
}

function written(name: string, bytes: Uint8Array): string {
  const path = join(top, name);
  writeFileSync(path, bytes);
  return path;
}

/** A migration stream that lists one block of so many bytes, and holds none of them. */
function hollowMigration(sizeBytes: bigint): Buffer {
  const u64 = (value: bigint): Buffer => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64BE(value);
    return bytes;
  };
  const ram = Buffer.from('000000000003', 'hex');
  return Buffer.concat([
    Buffer.from('5145564d00000003070000000470632d31', 'hex'),
    Buffer.from('01', 'hex'),
    ram.subarray(0, 4),
    Buffer.from('\x03ram', 'latin1'),
    Buffer.from('0000000000000004', 'hex'),
    u64(sizeBytes + 4n),
    Buffer.from('\x06pc.ram', 'latin1'),
    u64(sizeBytes),
    u64(0x10n),
    Buffer.from('7e00000000', 'hex'),
    Buffer.from('0300000000', 'hex'),
    u64(0x10n),
    Buffer.from('7e00000000', 'hex'),
    Buffer.from('0400000009', 'hex'),
    Buffer.from('\x05timer', 'latin1'),
    Buffer.from('0000000000000001', 'hex'),
    Buffer.from('0102', 'hex'),
    Buffer.from('7e00000009', 'hex'),
    Buffer.from('00', 'hex'),
  ]);
}

function xlWithConfig(file: Buffer, config: string): Buffer {
  const length = Buffer.alloc(8);
  const json = Buffer.from(`${config}\0`);
  length.writeUInt32LE(json.length + 4, 0);
  length.writeUInt32LE(json.length, 4);
  const rest = file.subarray(48 + file.readUInt32LE(44));
  return Buffer.concat([file.subarray(0, 44), length, json, rest]);
}

describe('files that an import is given', () => {
  const files: readonly (readonly [
    name: string,
    format: string,
    make: () => Promise<Uint8Array> | Uint8Array,
  ])[] = [
    ['a stream of a hundred bytes that claims 1 TiB', 'qemu', () => hollowMigration(TIB)],
    ['one that claims 64 TiB', 'qemu', () => hollowMigration(64n * TIB)],
    ['one that claims 1 GiB', 'qemu', () => hollowMigration(TIB >> 10n)],
    ['a stream that is cut off', 'qemu', async () => (await smallMigration()).subarray(0, 9000)],
    ['a description of devices that is nested without end', 'qemu', deepDescription],
    ['a file that is empty', 'qemu', () => new Uint8Array(0)],
    ['1 GiB of zeros in a MiB of gzip', 'qemu', () => gzippedZeros(1024)],
    [
      'device state without end in gzip',
      'qemu',
      async () => Buffer.concat([gzipSync((await smallMigration()).subarray(0, -20)), gzippedZeros(256)]),
    ],
    ['a mapped-ram file whose pages lie behind its end', 'qemu', farMapped],
    ['a save image that claims 4 GiB of XML', 'libvirt', () => hugeXml()],
    [
      'a save image that is cut off',
      'libvirt',
      async () => saveImage((await smallMigration()).subarray(0, 9000)),
    ],
    ['a save file that is cut off', 'xl', async () => (await smallSaveFiles())[0]!.subarray(0, 9000)],
    [
      'a guest that may have 4 PiB',
      'xl',
      () => withConfig(guestConfig('pvh').replace('"max_memkb":64', '"max_memkb":4398046511104')),
    ],
    ['a configuration that is nested without end', 'xl', () => withConfig('{"c_info":'.repeat(200_000))],
    [
      'numbers that are objects',
      'xl',
      () => withConfig(guestConfig('hvm').replace('"name"', '"toString":1,"valueOf":1,"x"')),
    ],
  ];

  async function farMapped(): Promise<Uint8Array> {
    const file = await mappedMigration();
    file.writeBigUInt64BE(8n * TIB, file.indexOf('pc.ram') + 'pc.ram'.length + 8 + 20);
    return file;
  }

  /**
   * Files of gzip may stand one behind the other. Made of one: the peak of a process counts from what this one had
   * in memory.
   */
  function gzippedZeros(mib: number): Buffer {
    return Buffer.concat(Array<Buffer>(mib).fill(gzipSync(Buffer.alloc(1 << 20))));
  }

  function hugeXml(): Uint8Array {
    const image = saveImage(new Uint8Array(0));
    image.writeUInt32LE(0xffffffff, 20);
    return image;
  }

  async function deepDescription(): Promise<Uint8Array> {
    const json = Buffer.from(`{"devices":${'['.repeat(3_000_000)}`);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(json.length);
    return Buffer.concat([(await smallMigration()).subarray(0, -6), length, json]);
  }

  async function withConfig(config: string): Promise<Uint8Array> {
    return xlWithConfig((await smallSaveFiles())[0]!, config);
  }

  it.each(files)('%s', async (_, format, make) => {
    const path = written('input', await make());
    const ended = await cairn(['import', path, '--format', format, '--repo', repo, '--name', 'web1']);
    expectRefusal(ended, EXIT.failure, 'STREAM_MALFORMED', /input/);
    await expectNothingLeft();
  });
});

describe('streams that a receiver is sent', () => {
  it.each([
    ['nothing', () => new Uint8Array(0)],
    ['noise', () => Buffer.alloc(1 << 20, 0xa5)],
    ['a state that is cut off', async () => (await smallRemusStream()).subarray(0, 12_000)],
    ['a length of a state record that nothing follows', async () => withLongRecord(await smallRemusStream())],
  ])('%s', async (_, make: () => Promise<Uint8Array> | Uint8Array) => {
    const ended = await cairn(['receive', '--repo', repo], written('input', await make()));
    expect(['STREAM_MALFORMED', 'VM_UNSUPPORTED', 'VM_UNREACHABLE', 'FFI_FAILED']).toContain(
      ended.error.code,
    );
    expect(ended.exitCode).not.toBe(0);
    expect(ended.error).toMatchObject({ hint: expect.stringMatching(/\w{3}/) });
    expect(ended.peakMib).toBeLessThan(MAX_PEAK_MIB);
    await expectNothingLeft();
  });

  function withLongRecord(stream: Buffer): Buffer {
    const at = stream.indexOf(Buffer.from('ffffffffffffffff', 'hex'));
    const head = Buffer.alloc(8);
    head.writeUInt32LE(9, 0);
    head.writeUInt32LE(64 << 20, 4);
    return Buffer.concat([stream.subarray(0, at + 40), head]);
  }
});

describe('objects of a repository whose seals are right', () => {
  const MANIFEST = 'vms/web1/checkpoints/0000000a-4405c7d14db23518';
  const SEGMENT = 'vms/web1/index/0000000a';
  const text = (key: string): Part => ({ key, part: 'text', frame: 0, fits: true });
  const damages: readonly (readonly [name: string, key: string, change: (folder: string) => void])[] = [
    [
      'a manifest that is nested without end',
      MANIFEST,
      edit((json) =>
        json.replace('"machine":{', `"machine":{"a":${'['.repeat(100_000)}${']'.repeat(100_000)},`),
      ),
    ],
    [
      'a manifest whose time is none',
      MANIFEST,
      edit((json) => json.replace(/"time":"[^"]*"/, '"time":"yesterday"')),
    ],
    ['a manifest of 17 TiB of memory', MANIFEST, edit((json) => json.replace('614400', String(17n * TIB)))],
    ['an index segment that comes to 3 GiB', SEGMENT, growSegment],
    [
      'a record of the VM that is 8 TiB long',
      'vms/web1/vm',
      (folder) => lengthen(join(folder, 'vms/web1/vm'), 8 * 2 ** 40),
    ],
  ];

  function edit(change: (json: string) => string): (folder: string) => void {
    return (folder) => {
      const part = text(MANIFEST);
      const json = change(readPart(goldenObjects(), part)!.toString('utf8'));
      replace(folder, MANIFEST, withPart(goldenObjects(), part, Buffer.from(json)).get(MANIFEST)!);
    };
  }

  /** Entry count and raw length of many entries, with a body of a few bytes. */
  function growSegment(folder: string): void {
    const objects = goldenObjects();
    const part: Part = { key: SEGMENT, part: 'segment', frame: 0, fits: false };
    const content = readPart(objects, part)!;
    const count = Math.floor((3 * 2 ** 30) / 13);
    content[11] = 1;
    content.writeUInt32LE(count, 32);
    content.writeUInt32LE(count * 13, 36);
    content.writeUInt32LE(content.length - 80, 40);
    const resealed = withPart(objects, part, content);
    const manifest = readPart(resealed, text(MANIFEST))!.toString('utf8');
    const grown = manifest
      .replace('614400', String(TIB))
      .replace(/("seq":10,"level":0,"entryCount":)\d+/, `$1${count}`);
    replace(folder, SEGMENT, resealed.get(SEGMENT)!);
    replace(folder, MANIFEST, withPart(objects, text(MANIFEST), Buffer.from(grown)).get(MANIFEST)!);
  }

  function replace(folder: string, key: string, bytes: Uint8Array): void {
    chmodSync(join(folder, key), 0o600);
    writeFileSync(join(folder, key), bytes);
  }

  function lengthen(path: string, sizeBytes: number): void {
    chmodSync(path, 0o600);
    truncateSync(path, sizeBytes);
  }

  it.each(damages)('%s', async (_, key, change) => {
    const folder = join(top, DAMAGED);
    rmSync(folder, { recursive: true, force: true });
    cpSync(GOLDEN, folder, { recursive: true });
    change(folder);
    const before = contents(folder);
    const ended = await cairn(['verify', '--repo', folder]);
    expect(ended).toMatchObject({ exitCode: EXIT.damaged, signal: null });
    expect(JSON.stringify(ended.messages)).toContain(key);
    expect(ended.peakMib).toBeLessThan(MAX_PEAK_MIB);
    for (const args of [
      ['list'],
      ['show', '4405c7d14db23518'],
      ['forget', '--name', 'web1', '--keep-daily', '1', '--dry-run'],
    ]) {
      const other = await cairn([...args, '--repo', folder]);
      expect(other.error.code).not.toBe('UNEXPECTED');
      expect(other.signal).toBeNull();
      expect(other.peakMib).toBeLessThan(MAX_PEAK_MIB);
    }
    expect(contents(folder)).toEqual(before);
  });

  /** Hashes of all objects but the endless one. */
  function contents(folder: string): readonly string[] {
    return readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && entry.name !== 'vm')
      .map((entry) => join(entry.parentPath, entry.name))
      .map((path) => `${path} ${sha256Hex(readFileSync(path))}`);
  }
});
