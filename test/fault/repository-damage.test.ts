/** A bit is flipped, an object is cut off, exchanged or removed: found, and named, by verify and by whoever reads it. */

import { beforeAll, describe, expect, it } from '@jest/globals';

import { Repository } from '../../src/repository/repository.js';
import {
  DIRECTORY_ENTRY_BYTES,
  PACK_HEADER_BYTES,
  PACK_TRAILER_BYTES,
} from '../../src/format/pack-format.js';
import { verify } from '../../src/repository/verify/verify.js';
import type { StorageBackend } from '../../src/storage/backend.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { IDENTITY, ModelVm, mustReadBack, readBack, type Expected } from '../unit/repository-model.js';

const objects = new Map<string, Uint8Array>();
const expected: Expected[] = [];
let locked = '';

beforeAll(async () => {
  const backend = new MemoryBackend();
  const repository = await Repository.init(backend);
  const chain = await repository.openChainWriter('web1', IDENTITY);
  const vm = new ModelVm();
  vm.scribble(120);
  for (let n = 0; n < 3; n++) {
    expected.push(vm.snapshot(await vm.checkpoint(chain)));
    vm.scribble(25);
  }
  // The lock stays: it is one of the records.
  for (const { key } of await backend.list('')) {
    objects.set(key, await backend.load(key));
    if (key.includes('/locks/')) locked = key;
  }
});

/** The repository with some objects replaced, or left out. */
async function altered(changes: ReadonlyMap<string, Uint8Array | undefined>): Promise<MemoryBackend> {
  const backend = new MemoryBackend();
  for (const [key, bytes] of objects) {
    const now = changes.has(key) ? changes.get(key) : bytes;
    if (now !== undefined) await backend.save(key, now);
  }
  return backend;
}

function flipped(key: string, bit: number): Map<string, Uint8Array> {
  const bytes = objects.get(key)!.slice();
  bytes[bit >>> 3]! ^= 1 << (bit & 7);
  return new Map([[key, bytes]]);
}

function keyLike(pattern: RegExp): string {
  return [...objects.keys()].find((key) => pattern.test(key))!;
}

/** Keys that verify names; a repository whose config cannot be read is named by `open`. */
async function named(backend: StorageBackend): Promise<readonly string[]> {
  let repository: Repository;
  try {
    repository = await Repository.open(backend);
  } catch (error) {
    expect(error).toMatchObject({ code: 'REPO_DAMAGED' });
    return [(error as { detail: { key: string } }).detail.key];
  }
  const { problems } = await verify(repository);
  for (const { key, message } of problems) expect(message).toContain(key);
  return problems.map(({ key }) => key);
}

/** Bits spread over the whole length, first and last included. */
function* someBits(sizeBytes: number, count: number): Generator<number> {
  const bits = sizeBytes * 8;
  for (let n = 0; n < count; n++) yield Math.floor((n * (bits - 1)) / (count - 1));
}

describe('a flipped bit', () => {
  it.each([
    ['the config', /^config$/],
    ['the record of the VM', /\/vm$/],
    ['a lock', /\/locks\//],
    ['an index segment', /\/index\/00000002$/],
    ['a manifest', /\/checkpoints\/00000002/],
  ])('anywhere in %s is found', async (_, pattern) => {
    const key = keyLike(pattern);
    const sizeBytes = objects.get(key)!.length;
    for (const bit of someBits(sizeBytes, 150))
      expect(await named(await altered(flipped(key, bit)))).toEqual([key]);
  });

  it.each([
    ['header', 0, PACK_HEADER_BYTES],
    ['first frame header', PACK_HEADER_BYTES, 64],
    ['first frame body', PACK_HEADER_BYTES + 64, 300],
    ['directory', -PACK_TRAILER_BYTES - DIRECTORY_ENTRY_BYTES, DIRECTORY_ENTRY_BYTES],
    ['trailer', -PACK_TRAILER_BYTES, PACK_TRAILER_BYTES],
  ])('anywhere in a pack (%s) is found by verify, and stops a restore', async (part, from, length) => {
    const key = keyLike(/\/packs\/00000001$/);
    const start = from < 0 ? objects.get(key)!.length + from : from;
    for (const bit of someBits(length, 60)) {
      const backend = await altered(flipped(key, start * 8 + bit));
      const repository = await Repository.open(backend);
      const { problems, affectedCheckpoints } = await verify(repository);
      expect(problems.length).toBeGreaterThan(0);
      for (const problem of problems) expect(problem.key).toMatch(/\/packs\//);
      expect(problems[0]!.key).toBe(key);
      if (part.startsWith('first frame')) expect(problems[0]!.message).toContain('frame 0');
      expect(affectedCheckpoints).toContain(expected[0]!.id);
      const manifest = await repository.find(expected[0]!.id);
      await expect(readBack(repository, manifest)).rejects.toMatchObject({
        code: 'REPO_DAMAGED',
        detail: { key },
      });
    }
  });

  it('in the device state alone leaves the memory of other checkpoints whole', async () => {
    const repository = await Repository.open(await altered(new Map()));
    const { deviceState } = await repository.find(expected[1]!.id);
    const key = `vms/web1/packs/${deviceState!.pack.toString(16).padStart(8, '0')}`;
    const end =
      objects.get(key)!.length - PACK_TRAILER_BYTES - (deviceState!.frame + 1) * DIRECTORY_ENTRY_BYTES;
    const backend = await altered(flipped(key, (end - 1) * 8));
    const damagedRepository = await Repository.open(backend);
    const result = await verify(damagedRepository);
    expect(result.affectedCheckpoints).toEqual([expected[1]!.id]);
    await mustReadBack(damagedRepository, expected[2]!);
  });

  it('in a lock keeps writers out, and says how to go on', async () => {
    const repository = await Repository.open(await altered(flipped(locked, 50)));
    const open = repository.openChainWriter('web1', IDENTITY);
    await expect(open).rejects.toMatchObject({
      code: 'REPO_DAMAGED',
      hint: expect.stringContaining('cairn unlock'),
    });
    await repository.unlock('web1', { force: true });
    await (await repository.openChainWriter('web1', IDENTITY)).close();
  });

  it('in the record of the VM keeps writers out', async () => {
    const changes = flipped('vms/web1/vm', 30);
    const repository = await Repository.open(await altered(new Map([...changes, [locked, undefined]])));
    const open = repository.openChainWriter('web1', IDENTITY);
    await expect(open).rejects.toMatchObject({ code: 'REPO_DAMAGED', detail: { key: 'vms/web1/vm' } });
  });
});

describe('an object', () => {
  it.each([/\/packs\/00000002$/, /\/index\/00000002$/, /\/checkpoints\/00000002/, /\/vm$/, /^config$/])(
    'like %s that is cut off anywhere is found',
    async (pattern) => {
      const key = keyLike(pattern);
      const whole = objects.get(key)!;
      for (const bit of someBits(whole.length, 25)) {
        const cut = whole.slice(0, bit >>> 3);
        expect(await named(await altered(new Map([[key, cut]])))).toContain(key);
      }
      const longer = new Uint8Array([...whole, 0]);
      expect(await named(await altered(new Map([[key, longer]])))).toContain(key);
    },
  );

  it.each([/\/packs\/00000002$/, /\/index\/00000001$/, /\/vm$/, /^config$/])(
    'like %s that is missing is named',
    async (pattern) => {
      const key = keyLike(pattern);
      expect(await named(await altered(new Map([[key, undefined]])))).toContain(key);
    },
  );

  it.each(['packs', 'index', 'checkpoints'])('in the place of another one (%s) is found', async (folder) => {
    const [one, two] = [...objects.keys()].filter((key) => key.includes(`/${folder}/`));
    expect(await named(await altered(new Map([[two!, objects.get(one!)]])))).toContain(two);
  });

  it('of another repository is found', async () => {
    const other = new MemoryBackend();
    const repository = await Repository.init(other);
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(120);
    await vm.checkpoint(chain);
    for (const key of ['vms/web1/packs/00000001', 'vms/web1/index/00000001']) {
      expect(await named(await altered(new Map([[key, await other.load(key)]])))).toContain(key);
    }
  });
});

describe('damage', () => {
  it('to one checkpoint does not touch those that do not need it', async () => {
    const key = keyLike(/\/packs\/00000003$/);
    const repository = await Repository.open(await altered(flipped(key, PACK_HEADER_BYTES * 8 + 600)));
    await mustReadBack(repository, expected[0]!);
    await mustReadBack(repository, expected[1]!);
    expect((await verify(repository)).affectedCheckpoints).toEqual([expected[2]!.id]);
  });

  it('is reported once a problem, and never with content', async () => {
    const key = keyLike(/\/packs\/00000001$/);
    const repository = await Repository.open(await altered(flipped(key, (PACK_HEADER_BYTES + 100) * 8)));
    const seen: string[] = [];
    const { problems } = await verify(repository, { onProblem: ({ message }) => seen.push(message) });
    expect(seen).toEqual(problems.map(({ message }) => message));
    expect(new Set(seen).size).toBe(seen.length);
    for (const message of seen) expect(message).toMatch(/^[\x20-\x7e]{1,200}$/);
  });
});
