/** The object store backend on a store that misbehaves on request. On a real one: test/lab/s3.test.ts. */

import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';

import type { StorageBackend } from '../../src/storage/backend.js';
import { openS3, type OpenedS3 } from '../../src/storage/s3/open-s3.js';
import { mustBeSuitable, probeStore } from '../../src/storage/s3/probe.js';
import { SettledBackend } from '../../src/storage/settled-backend.js';
import { FakeObjectStore, type StoreFault } from '../support/fake-object-store.js';
import { seeded } from '../support/seeded.js';
import { storageContract } from './storage.js';

const KEYS = { AWS_ACCESS_KEY_ID: 'key', AWS_SECRET_ACCESS_KEY: 'secret', HOME: '/nonexistent' };
const some = new Uint8Array(10).fill(7);

let store: FakeObjectStore;
let count = 0;
const opened: OpenedS3[] = [];

beforeAll(async () => {
  store = await FakeObjectStore.start();
});
afterEach(() => {
  store.fault = () => undefined;
  store.ignoresConditions = false;
  store.clockAheadMs = 0;
});
afterAll(async () => {
  for (const { backend } of opened) await backend.close();
  await store.stop();
});

const open = async (prefix = `p${count++}`, more = 'give-up=5'): Promise<OpenedS3> => {
  const s3 = await openS3(`s3://bucket/${prefix}?endpoint=${store.endpoint}&${more}`, KEYS, { idleMs: 2000 });
  opened.push(s3);
  return s3;
};

const codeOf = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'done',
    (error: unknown) => (error as { code: string }).code,
  );

describe('on a store that does what it should', () => {
  const ready: StorageBackend[] = [];
  beforeAll(async () => {
    for (let n = 0; n < 60; n++) ready.push((await open()).backend);
  });
  storageContract('object store', () => ready.pop()!);
  storageContract('object store, settled', () => SettledBackend.of(ready.pop()!));
});

describe('on a store that fails every third request in some way', () => {
  const ready: StorageBackend[] = [];
  beforeAll(async () => {
    for (let n = 0; n < 40; n++) ready.push((await open()).backend);
  });
  storageContract('unreliable object store', () => {
    const random = seeded(count);
    const faults: readonly StoreFault[] = ['reset', 'reset-after', 'busy', 'error-after', 'truncated'];
    store.fault = () => (random(3) === 0 ? faults[random(faults.length)] : undefined);
    return ready.pop()!;
  });
});

describe('a request whose answer is lost', () => {
  it.each(['reset-after', 'error-after', 'truncated'] as const)(
    'for an object of its own is known again (%s)',
    async (fault) => {
      const { backend } = await open('own');
      let left = 1;
      store.fault = (what) => (what.startsWith('PUT own/') && left-- > 0 ? fault : undefined);
      expect(await codeOf(backend.save(`a-${fault}`, some))).toBe('done');
      expect(await codeOf(backend.save(`a-${fault}`, some))).toBe('STORAGE_EXISTS');
    },
  );

  it('and that may still be under way leaves the object uncertain, and what is confirmed then holds', async () => {
    const { backend } = await open('late', 'give-up=1');
    store.fault = (what) => (what.startsWith('PUT late/a') ? 'late' : undefined);
    expect(await codeOf(backend.save('a', some))).toBe('STORAGE_UNCERTAIN');
    store.fault = () => undefined;
    expect(await backend.confirm('a')).toBeUndefined();
    store.release();
    expect(await backend.confirm('a')).toBeUndefined();
    expect(await codeOf(backend.load('a'))).toBe('STORAGE_NOT_FOUND');
    expect(await backend.list('')).toEqual([]);
    // The key is free for whoever comes next.
    expect(await codeOf(backend.save('a', some))).toBe('done');
    expect(await backend.list('')).toEqual([{ key: 'a', sizeBytes: 10 }]);
  });

  it('for a removal leaves an object that is there uncertain', async () => {
    const { backend } = await open('gone', 'give-up=1');
    await backend.save('a', some);
    store.fault = (what) => (what === 'DELETE gone/a' ? 'late' : undefined);
    expect(await codeOf(backend.remove('a'))).toBe('STORAGE_UNCERTAIN');
    expect(await codeOf(backend.confirm('a'))).toBe('STORAGE_UNCERTAIN');
    store.release();
    expect(await backend.confirm('a')).toBeUndefined();
  });

  it('is no reason to wait for ever', async () => {
    const { backend } = await open('out', 'give-up=1');
    store.fault = () => 'busy';
    expect(await codeOf(backend.load('a'))).toBe('STORAGE_IO');
    expect(await codeOf(backend.save('a', some))).toBe('STORAGE_UNCERTAIN');
  });
});

describe('a writer that has lost its chain', () => {
  it('cannot commit, however late its request arrives', async () => {
    const loser = (await open('fence', 'give-up=1')).backend;
    const owner = (await open('fence')).backend;
    store.fault = (what) => (what === 'PUT fence/sub/a' ? 'late' : undefined);
    expect(await codeOf(loser.save('sub/a', some, { beforeVisible: () => Promise.resolve() }))).toBe(
      'STORAGE_UNCERTAIN',
    );
    store.fault = () => undefined;
    expect(await owner.removeUnfinished!('sub/')).toBe(1);
    expect(await owner.list('')).toEqual([]);
    store.release();
    expect(await owner.list('')).toEqual([]);
    expect(await loser.confirm('sub/a')).toBeUndefined();
  });

  it('learns so when it was only slow, and what was committed in time stays', async () => {
    const loser = (await open('slow')).backend;
    const owner = (await open('slow')).backend;
    const beforeVisible = async (): Promise<void> => {
      expect(await owner.removeUnfinished!('sub/')).toBe(1);
    };
    expect(await codeOf(loser.save('sub/a', some, { beforeVisible }))).toBe('STORAGE_NOT_FOUND');
    await loser.save('sub/b', some, { beforeVisible: () => Promise.resolve() });
    expect(await owner.removeUnfinished!('sub/')).toBe(0);
    expect(await owner.list('')).toEqual([{ key: 'sub/b', sizeBytes: 10 }]);
  });

  it('does not replace what the next one has replaced', async () => {
    const loser = (await open('over')).backend;
    const owner = (await open('over')).backend;
    await owner.save('a', some);
    const beforeVisible = async (): Promise<void> => {
      await owner.replace('a', some.subarray(1));
    };
    expect(await codeOf(loser.replace('a', some.subarray(2), { beforeVisible }))).toBe('STORAGE_IO');
    expect((await owner.stat('a')).sizeBytes).toBe(9);
  });
});

describe('large objects', () => {
  it('are read in parts at once, whole and in ranges', async () => {
    const { backend } = await open('large');
    const large = new Uint8Array(20 * 1024 * 1024 + 3).map((_, at) => (at >> 12) & 0xff);
    async function* pieces(): AsyncGenerator<Uint8Array> {
      for (let at = 0; at < large.length; at += 1 << 20) {
        yield large.subarray(at, at + (1 << 20));
        await Promise.resolve();
      }
    }
    await backend.save('a', pieces());
    expect(Buffer.compare(await backend.load('a'), large)).toBe(0);
    const range = { offsetBytes: 5, lengthBytes: 17 * 1024 * 1024 };
    expect(Buffer.compare(await backend.load('a', range), large.subarray(5, 5 + range.lengthBytes))).toBe(0);
  });
});

describe('the probe', () => {
  it('finds nothing against a store that does what it should, and leaves nothing', async () => {
    const { client } = await open('probed');
    const report = await probeStore(client, 'probed', 's3://bucket/probed');
    expect(report.problems).toEqual([]);
    expect(() => mustBeSuitable(report, 's3://bucket/probed')).not.toThrow();
    expect([...store.objects.keys()].filter((name) => name.startsWith('probed/'))).toEqual([]);
  });

  it('refuses one that ignores conditions, with what to do', async () => {
    store.ignoresConditions = true;
    const { client } = await open('pretends');
    const report = await probeStore(client, 'pretends', 's3://bucket/pretends');
    expect(report).toMatchObject({ createsOnce: false, replacesWhatWasSeen: false, showsAtOnce: true });
    expect(() => mustBeSuitable(report, 's3://bucket/pretends')).toThrow(
      expect.objectContaining({
        code: 'STORAGE_UNSUITABLE',
        hint: expect.stringContaining('single-writer=yes'),
      }),
    );
  });

  it('says how far the clocks are apart', async () => {
    store.clockAheadMs = 7_200_000;
    const { client } = await open('clock');
    const { clockAheadMs, problems } = await probeStore(client, 'clock', 's3://bucket/clock');
    expect(Math.round(clockAheadMs / 60_000)).toBe(120);
    expect(problems).toEqual([]);
  });
});
