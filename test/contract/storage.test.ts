import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  statfsSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from '@jest/globals';

import { FaultyBackend, type FaultMode } from '../support/faulty-backend.js';
import type { StorageBackend } from '../../src/storage/backend.js';
import { FileBackend } from '../../src/storage/file.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { SettledBackend } from '../../src/storage/settled-backend.js';
import { openBackend } from '../../src/storage/open.js';
import { fromSystemError } from '../../src/storage/storage-errors.js';
import { newTempName } from '../../src/storage/temp-files.js';
import { storageContract } from './storage.js';

const top = mkdtempSync(join(tmpdir(), 'cairn-storage-'));
let count = 0;
const newFolder = (): string => join(top, `${count++}`);
afterAll(() => rmSync(top, { recursive: true }));

storageContract('memory', () => new MemoryBackend());
storageContract('file', () => new FileBackend(newFolder()));
storageContract('settled', () => SettledBackend.of(new MemoryBackend()));
storageContract(
  'faulty, never failing',
  () => new FaultyBackend(new MemoryBackend(), { mode: 'fail', atCall: 0 }),
);

describe('the file backend', () => {
  const some = new Uint8Array(10);

  it('keeps objects and folders from everybody else', async () => {
    const root = newFolder();
    await new FileBackend(root).save('a/b/c', some);
    expect(statSync(join(root, 'a/b/c')).mode & 0o777).toBe(0o600);
    for (const folder of ['', 'a', 'a/b']) expect(statSync(join(root, folder)).mode & 0o777).toBe(0o700);
  });

  it('leaves no temporary file, not even of a save that lost', async () => {
    const root = newFolder();
    const backend = new FileBackend(root);
    await Promise.allSettled([backend.save('x', some), backend.save('x', some), backend.save('x', some)]);
    expect(readdirSync(root)).toEqual(['x']);
  });

  it('never lists what a dead writer left, and the next writer removes it', async () => {
    const root = newFolder();
    mkdirSync(join(root, 'sub'), { recursive: true });
    const [host, boot, namespace, , startTime] = newTempName().slice(1).split('-');
    const dead = `${process.pid}-${Number(startTime) - 1}-aaaaaaaaaaaa`;
    const ofDead = `~${host!}-${boot!}-${namespace!}-${dead}`;
    const kept = [
      newTempName(),
      `~${host!}-00000000-${namespace!}-${dead}`, // another boot, or a copy of this machine
      `~${host!}-${boot!}-00000000-${dead}`, // another container
      `~00000000-11111111-22222222-1-1-aaaaaaaaaaaa`, // another host
      ...['~', '~notes', '~draft.odt', `${ofDead}.bak`, ofDead.slice(0, -1), ofDead.toUpperCase()],
    ];
    for (const name of [ofDead, ...kept]) {
      writeFileSync(join(root, 'sub', name), 'half');
      // Neither an old nor a future file says anything: clocks differ.
      const someTime = new Date(Date.now() + (name.length % 2 === 0 ? 1 : -1) * 480 * 3600 * 1000);
      utimesSync(join(root, 'sub', name), someTime, someTime);
    }
    const backend = new FileBackend(root);
    expect(await backend.list('')).toEqual([]);
    await backend.save('sub/object', some);
    expect(readdirSync(join(root, 'sub')).sort()).toEqual(['object', ...kept].sort());
    expect((await backend.list('')).map(({ key }) => key)).toEqual(['sub/object']);
  });

  it('removes nothing through a link, and nothing but files', async () => {
    const root = newFolder();
    const elsewhere = newFolder();
    const [host, boot, namespace, , startTime] = newTempName().slice(1).split('-');
    const of = (random: string): string =>
      `~${host!}-${boot!}-${namespace!}-${process.pid}-${Number(startTime) - 1}-${random.repeat(12)}`;
    for (const folder of [join(root, 'sub'), elsewhere]) mkdirSync(folder, { recursive: true });
    writeFileSync(join(elsewhere, of('a')), 'of somebody');
    symlinkSync(elsewhere, join(root, 'linked'));
    mkdirSync(join(root, 'sub', of('b')));
    symlinkSync(join(elsewhere, of('a')), join(root, 'sub', of('c')));
    const backend = new FileBackend(root);
    await backend.save('sub/object', some);
    await backend.save('linked/object', some);
    expect(await backend.removeUnfinished('sub/')).toBe(0);
    expect(await backend.removeUnfinished('linked/')).toBe(0);
    expect(readdirSync(join(root, 'sub')).sort()).toEqual(['object', of('b'), of('c')].sort());
    expect(readdirSync(elsewhere).sort()).toEqual(['object', of('a')].sort());
  });

  it('says how much room its file system has, also to whom it is settled', async () => {
    const root = newFolder();
    mkdirSync(root);
    const backend = new FileBackend(root);
    const { blocks, bsize } = statfsSync(root);
    for (const one of [backend, SettledBackend.of(backend)]) {
      const freeBytes = await one.freeBytes?.();
      expect(freeBytes).toBeGreaterThan(0);
      expect(freeBytes).toBeLessThan(blocks * bsize);
    }
    expect(await SettledBackend.of(new MemoryBackend()).freeBytes?.()).toBeUndefined();
  });

  it('removes what others write when nobody else may, and then their objects get no names', async () => {
    const root = newFolder();
    const loser = new FileBackend(root);
    const owner = new FileBackend(root);
    const lost = loser.save('sub/lost', some, {
      beforeVisible: async () => {
        expect(await owner.removeUnfinished('sub/')).toBe(1);
      },
    });
    await expect(lost).rejects.toMatchObject({ code: 'STORAGE_NOT_FOUND' });
    // What it writes itself stays.
    await owner.save('sub/own', some, {
      beforeVisible: async () => {
        expect(await owner.removeUnfinished('sub/')).toBe(0);
      },
    });
    expect(readdirSync(join(root, 'sub'))).toEqual(['own']);
    expect(await owner.removeUnfinished('no-such-folder/')).toBe(0);
  });

  it('makes nothing visible that is not allowed at the last moment', async () => {
    const root = newFolder();
    const backend = new FileBackend(root);
    await backend.save('x', some);
    const options = { beforeVisible: () => Promise.reject(new Error('not any more')) };
    await expect(backend.save('y', some, options)).rejects.toThrow('not any more');
    await expect(backend.replace('x', new Uint8Array(1), options)).rejects.toThrow('not any more');
    expect(readdirSync(root)).toEqual(['x']);
    expect(await backend.load('x')).toEqual(some);
  });

  it('ignores files that cannot be objects', async () => {
    const root = newFolder();
    mkdirSync(join(root, 'lost+found'), { recursive: true });
    writeFileSync(join(root, 'notes with spaces'), '');
    expect(await new FileBackend(root).list('')).toEqual([]);
  });

  const errors: readonly (readonly [string, string])[] = [
    ['ENOSPC', 'STORAGE_FULL'],
    ['EDQUOT', 'STORAGE_FULL'],
    ['EROFS', 'STORAGE_READ_ONLY'],
    ['EACCES', 'STORAGE_READ_ONLY'],
    ['EIO', 'STORAGE_IO'],
    ['ETIMEDOUT', 'STORAGE_IO'],
  ];
  it.each(errors)('reports %s as %s with the object, and a hint where one helps', (errno, code) => {
    const error = fromSystemError(
      Object.assign(new Error('x'), { code: errno }),
      'writing',
      'a/b',
      'file:/srv',
    );
    expect(error).toMatchObject({ code, detail: { key: 'a/b', errno } });
    expect(error.message).toContain('a/b in file:/srv');
    expect(error.hint === undefined).toBe(code === 'STORAGE_IO');
  });

  it('reports a name that is taken by a file where a folder is needed', async () => {
    const root = newFolder();
    mkdirSync(root);
    writeFileSync(join(root, 'file'), '');
    await expect(new FileBackend(root).save('file/below', some)).rejects.toMatchObject({
      code: 'STORAGE_IO',
    });
  });
});

describe('the address of a repository', () => {
  it.each([
    ['/srv/cairn', 'file:/srv/cairn'],
    ['file:/srv/cairn', 'file:/srv/cairn'],
    ['file:///srv/cairn', 'file:/srv/cairn'],
    ['./a:b', `file:${process.cwd()}/a:b`],
    ['file:a:b', `file:${process.cwd()}/a:b`],
  ])('%s is %s', (address, location) => {
    expect(openBackend(address).properties.location).toBe(location);
  });

  it.each(['ftp://x', 'http://x', 'file://host/x', '', 'file:'])('refuses %j with a hint', (address) => {
    expect(() => openBackend(address)).toThrow(
      expect.objectContaining({ code: 'STORAGE_ADDRESS', hint: expect.any(String) }),
    );
  });
});

describe('the settled backend', () => {
  const some = new Uint8Array(10);
  type Call = 'save' | 'replace' | 'remove';
  const calls: Readonly<Record<Call, (backend: StorageBackend) => Promise<unknown>>> = {
    save: (backend) => backend.save('new', some),
    replace: (backend) => backend.replace('old', some.subarray(1)),
    remove: (backend) => backend.remove('old'),
  };

  async function after(call: Call, mode: FaultMode, outage: number) {
    const inner = new MemoryBackend();
    await inner.save('old', some.subarray(5));
    const backend = SettledBackend.of(new FaultyBackend(inner, { mode, atCall: 1, outage }));
    const told = await calls[call](backend).then(
      () => 'done',
      (error: unknown) => (error as { code: string }).code,
    );
    return { told, left: (await inner.list('')).map(({ key }) => key) };
  }

  it.each([
    ['save', 'lost-reply', 0, 'done', ['new', 'old']],
    ['save', 'fail', 0, 'STORAGE_IO', ['old']],
    ['save', 'lost-reply', 1, 'STORAGE_UNCERTAIN', ['new', 'old']],
    ['save', 'fail', 1, 'STORAGE_UNCERTAIN', ['old']],
    ['remove', 'lost-reply', 0, 'done', []],
    ['remove', 'fail', 0, 'STORAGE_IO', ['old']],
    ['remove', 'lost-reply', 1, 'STORAGE_UNCERTAIN', []],
    ['remove', 'fail', 1, 'STORAGE_UNCERTAIN', ['old']],
    ['replace', 'lost-reply', 0, 'STORAGE_IO', ['old']],
  ] as const)(
    '%s, %s, %i failures after it: says %s and leaves %j',
    async (call, mode, outage, told, left) => {
      expect(await after(call, mode, outage)).toEqual({ told, left: [...left] });
    },
  );

  it.each(['STORAGE_FULL', 'STORAGE_READ_ONLY', 'STORAGE_NOT_FOUND', 'STORAGE_EXISTS'] as const)(
    'passes on a clear refusal (%s) and asks nobody',
    async (code) => {
      const faulty = new FaultyBackend(new MemoryBackend(), { mode: 'fail', atCall: 1, code });
      await expect(SettledBackend.of(faulty).save('a', some)).rejects.toMatchObject({ code });
      expect(faulty.names).toEqual(['save a']);
    },
  );

  it('takes no object of somebody else for its own when the name was refused', async () => {
    const root = newFolder();
    const backend = SettledBackend.of(new FileBackend(root));
    const other = new FileBackend(root);
    const refused = backend.save('sub/a', some, {
      beforeVisible: async () => {
        await other.save('sub/a', some);
        throw new Error('not any more');
      },
    });
    await expect(refused).rejects.toThrow('not any more');
  });

  it('knows that what was not taken to its end is not there, and asks nobody', async () => {
    const faulty = new FaultyBackend(new MemoryBackend(), { mode: 'fail', atCall: 2 });
    // eslint-disable-next-line @typescript-eslint/require-await -- an iterable body is asynchronous by contract
    async function* broken(): AsyncGenerator<Uint8Array> {
      yield some;
      throw new Error('the producer broke');
    }
    await expect(SettledBackend.of(faulty).save('a', broken())).rejects.toThrow('the producer broke');
    expect(faulty.names).toEqual(['save a']);
  });

  it('takes an object of another length for none of its own', async () => {
    const inner = new MemoryBackend();
    await inner.save('a', some.subarray(1));
    const faulty = new FaultyBackend(inner, { mode: 'fail', atCall: 1 });
    await expect(SettledBackend.of(faulty).save('a', some)).rejects.toMatchObject({ code: 'STORAGE_IO' });
  });
});

describe('the faulty backend', () => {
  const some = new Uint8Array(10);

  it('fails one call and goes on', async () => {
    const backend = new FaultyBackend(new MemoryBackend(), { mode: 'fail', atCall: 2, code: 'STORAGE_FULL' });
    await backend.save('a', some);
    await expect(backend.save('b', some)).rejects.toMatchObject({ code: 'STORAGE_FULL' });
    await backend.save('c', some);
    expect((await backend.list('')).map(({ key }) => key)).toEqual(['a', 'c']);
  });

  it.each([
    ['lost-reply', ['a', 'b', 'c']],
    ['crash', ['a']],
    ['crash-after', ['a', 'b']],
    ['torn', ['a', 'b']],
  ] as const)('%s at the second of three saves leaves %j', async (mode, left) => {
    const inner = new MemoryBackend();
    const backend = new FaultyBackend(inner, { mode, atCall: 2 });
    await Promise.allSettled([backend.save('a', some), backend.save('b', some), backend.save('c', some)]);
    expect((await inner.list('')).map(({ key }) => key)).toEqual(left);
    if (mode === 'torn') expect((await inner.stat('b')).sizeBytes).toBe(5);
  });
});
