/** What every storage backend must do. Run by `storage.test.ts` for each of them. */

import { describe, expect, it } from '@jest/globals';

import type { StorageBackend } from '../../src/storage/backend.js';

/** @param makeBackend an empty backend; the suite does not close it unless it says so */
export function storageContract(name: string, makeBackend: () => StorageBackend): void {
  const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text));

  // eslint-disable-next-line @typescript-eslint/require-await -- an iterable body is asynchronous by contract
  async function* chunks(...texts: string[]): AsyncGenerator<Uint8Array> {
    for (const text of texts) yield bytes(text);
  }

  describe(`storage contract: ${name}`, () => {
    it('gives back what was saved, whole and in part', async () => {
      const backend = makeBackend();
      expect(await backend.save('a/b/c', bytes('0123456789'))).toBe(10);
      expect(Buffer.from(await backend.load('a/b/c')).toString()).toBe('0123456789');
      const part = await backend.load('a/b/c', { offsetBytes: 3, lengthBytes: 4 });
      expect(Buffer.from(part).toString()).toBe('3456');
      expect(await backend.load('a/b/c', { offsetBytes: 10, lengthBytes: 0 })).toHaveLength(0);
      expect(await backend.stat('a/b/c')).toEqual({ key: 'a/b/c', sizeBytes: 10 });
    });

    it('keeps an empty object', async () => {
      const backend = makeBackend();
      await backend.save('empty', new Uint8Array(0));
      expect(await backend.load('empty')).toHaveLength(0);
    });

    it('saves an iterable whose producer reuses its buffer', async () => {
      const backend = makeBackend();
      const buffer = new Uint8Array(4);
      // eslint-disable-next-line @typescript-eslint/require-await -- as above
      async function* reusing(): AsyncGenerator<Uint8Array> {
        for (let n = 1; n <= 3; n++) {
          buffer.fill(n);
          yield buffer;
        }
      }
      expect(await backend.save('stream', reusing())).toBe(12);
      expect([...(await backend.load('stream'))]).toEqual([1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
    });

    it('hands out bytes that the caller may change', async () => {
      const backend = makeBackend();
      const given = bytes('abc');
      await backend.save('key', given);
      given[0] = 0;
      (await backend.load('key'))[1] = 0;
      expect(Buffer.from(await backend.load('key')).toString()).toBe('abc');
    });

    it('creates an object once and leaves the first one alone', async () => {
      const backend = makeBackend();
      await backend.save('once', bytes('first'));
      await expect(backend.save('once', bytes('second'))).rejects.toMatchObject({ code: 'STORAGE_EXISTS' });
      expect(Buffer.from(await backend.load('once')).toString()).toBe('first');
    });

    it('replaces an object whole, and only one that is there', async () => {
      const backend = makeBackend();
      await expect(backend.replace('a/b', bytes('x'))).rejects.toMatchObject({ code: 'STORAGE_NOT_FOUND' });
      expect(await backend.list('')).toEqual([]);
      await backend.save('a/b', bytes('a longer one'));
      expect(await backend.replace('a/b', chunks('an', 'other'))).toBe(7);
      expect(Buffer.from(await backend.load('a/b')).toString()).toBe('another');
      expect(await backend.list('')).toEqual([{ key: 'a/b', sizeBytes: 7 }]);
      await expect(backend.save('a/b', bytes('x'))).rejects.toMatchObject({ code: 'STORAGE_EXISTS' });
    });

    it('leaves an object as it is when its replacement fails', async () => {
      const backend = makeBackend();
      await backend.save('a/b', bytes('first'));
      // eslint-disable-next-line @typescript-eslint/require-await -- as above
      async function* failing(): AsyncGenerator<Uint8Array> {
        yield bytes('half');
        throw new Error('the producer broke');
      }
      await expect(backend.replace('a/b', failing())).rejects.toThrow('the producer broke');
      const aborted = AbortSignal.abort(new Error('enough'));
      await expect(backend.replace('a/b', bytes('x'), { signal: aborted })).rejects.toMatchObject({
        code: 'INTERRUPTED',
      });
      expect(Buffer.from(await backend.load('a/b')).toString()).toBe('first');
      expect(await backend.list('')).toEqual([{ key: 'a/b', sizeBytes: 5 }]);
    });

    it('lets exactly one of many that save the same key at once succeed', async () => {
      const backend = makeBackend();
      const saves = Array.from({ length: 12 }, (_, n) => backend.save('race', bytes(`writer ${n}`)));
      const settled = await Promise.allSettled(saves);
      const winners = settled.flatMap((one, n) => (one.status === 'fulfilled' ? [n] : []));
      expect(winners).toHaveLength(1);
      expect(Buffer.from(await backend.load('race')).toString()).toBe(`writer ${winners[0]!}`);
      for (const one of settled) {
        if (one.status === 'rejected') expect(one.reason).toMatchObject({ code: 'STORAGE_EXISTS' });
      }
    });

    it('shows nothing of an object whose producer fails, and passes its error on', async () => {
      const backend = makeBackend();
      // eslint-disable-next-line @typescript-eslint/require-await -- as above
      async function* failing(): AsyncGenerator<Uint8Array> {
        yield bytes('half');
        throw new Error('the producer broke');
      }
      await expect(backend.save('broken', failing())).rejects.toThrow('the producer broke');
      await expect(backend.stat('broken')).rejects.toMatchObject({ code: 'STORAGE_NOT_FOUND' });
      expect(await backend.list('')).toEqual([]);
      await backend.save('broken', chunks('whole', ' now'));
      expect(Buffer.from(await backend.load('broken')).toString()).toBe('whole now');
    });

    it('shows an object only once it is whole', async () => {
      const backend = makeBackend();
      const seen: number[] = [];
      async function* watching(): AsyncGenerator<Uint8Array> {
        yield bytes('one');
        seen.push((await backend.list('')).length);
        yield bytes('two');
        seen.push((await backend.list('')).length);
      }
      await backend.save('late', watching());
      expect(seen).toEqual([0, 0]);
      expect(await backend.list('')).toHaveLength(1);
    });

    it('lists by prefix, sorted by key, with sizes', async () => {
      const backend = makeBackend();
      for (const key of ['b', 'a/2', 'a/10', 'a-x', 'a/sub/1', 'ab']) await backend.save(key, bytes(key));
      const keys = async (prefix: string): Promise<string[]> =>
        (await backend.list(prefix)).map(({ key }) => key);
      expect(await keys('')).toEqual(['a-x', 'a/10', 'a/2', 'a/sub/1', 'ab', 'b']);
      expect(await keys('a/')).toEqual(['a/10', 'a/2', 'a/sub/1']);
      expect(await keys('a/s')).toEqual(['a/sub/1']);
      expect(await keys('a')).toEqual(['a-x', 'a/10', 'a/2', 'a/sub/1', 'ab']);
      expect(await keys('none/')).toEqual([]);
      expect(await backend.list('a/sub')).toEqual([{ key: 'a/sub/1', sizeBytes: 7 }]);
    });

    it('removes for good, and the key is free again', async () => {
      const backend = makeBackend();
      await backend.save('gone', bytes('x'));
      await backend.remove('gone');
      await expect(backend.load('gone')).rejects.toMatchObject({ code: 'STORAGE_NOT_FOUND' });
      expect(await backend.list('')).toEqual([]);
      await backend.save('gone', bytes('y'));
      expect(Buffer.from(await backend.load('gone')).toString()).toBe('y');
    });

    it('confirms what is there and what is not', async () => {
      const backend = makeBackend();
      expect(await backend.confirm('a/b')).toBeUndefined();
      await backend.save('a/b', bytes('12345'));
      expect(await backend.confirm('a/b')).toEqual({ key: 'a/b', sizeBytes: 5 });
      for (const key of ['a', 'a/b/c', 'a/other', 'b/c']) expect(await backend.confirm(key)).toBeUndefined();
      await backend.replace('a/b', bytes('123'));
      expect(await backend.confirm('a/b')).toEqual({ key: 'a/b', sizeBytes: 3 });
      await backend.remove('a/b');
      expect(await backend.confirm('a/b')).toBeUndefined();
    });

    it('names a missing object', async () => {
      const backend = makeBackend();
      await backend.save('folder/object', bytes('x'));
      for (const key of ['nothing', 'folder', 'folder/object/below', 'folder/other']) {
        const missing = { code: 'STORAGE_NOT_FOUND', detail: { key } };
        await expect(backend.load(key)).rejects.toMatchObject(missing);
        await expect(backend.stat(key)).rejects.toMatchObject(missing);
      }
      await expect(backend.remove('nothing')).rejects.toMatchObject({ code: 'STORAGE_NOT_FOUND' });
    });

    it('refuses a range past the end', async () => {
      const backend = makeBackend();
      await backend.save('short', bytes('12345'));
      for (const [offsetBytes, lengthBytes] of [
        [0, 6],
        [5, 1],
        [100, 1],
      ] as const) {
        const load = backend.load('short', { offsetBytes, lengthBytes });
        await expect(load).rejects.toMatchObject({ code: 'STORAGE_RANGE' });
      }
    });

    it.each(['', '/a', 'a/', 'a//b', '../a', 'a/./b', '~temp', 'a b', 'ä', 'a\0'])(
      'refuses the key %j',
      async (key) => {
        const backend = makeBackend();
        await expect(backend.save(key, bytes('x'))).rejects.toMatchObject({ name: 'RangeError' });
        await expect(backend.load(key)).rejects.toMatchObject({ name: 'RangeError' });
      },
    );

    it('does nothing for a signal that is aborted already', async () => {
      const backend = makeBackend();
      await backend.save('there', bytes('x'));
      const signal = AbortSignal.abort();
      const interrupted = { code: 'INTERRUPTED' };
      await expect(backend.save('new', bytes('x'), { signal })).rejects.toMatchObject(interrupted);
      await expect(backend.load('there', undefined, { signal })).rejects.toMatchObject(interrupted);
      await expect(backend.stat('there', { signal })).rejects.toMatchObject(interrupted);
      await expect(backend.list('', { signal })).rejects.toMatchObject(interrupted);
      await expect(backend.remove('there', { signal })).rejects.toMatchObject(interrupted);
      await expect(backend.confirm('there', { signal })).rejects.toMatchObject(interrupted);
      expect((await backend.list('')).map(({ key }) => key)).toEqual(['there']);
    });

    it('gives up a save in the middle without a trace', async () => {
      const backend = makeBackend();
      const abort = new AbortController();
      // eslint-disable-next-line @typescript-eslint/require-await -- as above
      async function* endless(): AsyncGenerator<Uint8Array> {
        for (let n = 0; n < 1000; n++) {
          if (n === 3) abort.abort();
          yield bytes('again and again');
        }
      }
      const save = backend.save('endless', endless(), { signal: abort.signal });
      await expect(save).rejects.toMatchObject({ code: 'INTERRUPTED' });
      expect(await backend.list('')).toEqual([]);
    });

    it('says where it is', () => {
      const { location, durable } = makeBackend().properties;
      expect(location).toMatch(/^[a-z0-9]+:/);
      expect(typeof durable).toBe('boolean');
    });
  });
}
