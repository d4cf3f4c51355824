/** The backend that encrypts: the contract of all backends, and that nothing is believed which was not written so. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, describe, expect, it } from '@jest/globals';

import type { StorageBackend } from '../../src/storage/backend.js';
import { FileBackend } from '../../src/storage/file.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { KeyRing } from '../../src/storage/sealing/key-ring.js';
import { SealedBackend } from '../../src/storage/sealing/sealed-backend.js';
import { BLOCK_BYTES } from '../../src/storage/sealing/sealed-object.js';
import { SettledBackend } from '../../src/storage/settled-backend.js';
import { seeded } from '../support/seeded.js';
import { storageContract } from './storage.js';

const top = mkdtempSync(join(tmpdir(), 'cairn-sealed-'));
let count = 0;
afterAll(() => rmSync(top, { recursive: true }));

storageContract('encrypted memory', () => new SealedBackend(new MemoryBackend(), KeyRing.create()));
storageContract('encrypted folder', () =>
  SettledBackend.of(new SealedBackend(new FileBackend(join(top, `${count++}`)), KeyRing.create())),
);

const ring = KeyRing.create();
const MUTATIONS = 20_000;

/** Puts bytes in the place of an object, as somebody does who can write to the storage and has no key. */
async function forge(inner: StorageBackend, key: string, bytes: Uint8Array): Promise<void> {
  if ((await inner.list(key)).some((object) => object.key === key)) await inner.replace(key, bytes);
  else await inner.save(key, bytes);
}

function pattern(length: number, seed: number): Uint8Array {
  const random = seeded(seed);
  return new Uint8Array(length).map(() => random(256));
}

describe('an encrypted object', () => {
  it.each([0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES, 3 * BLOCK_BYTES + 5])(
    'of %i bytes comes back, whole and in every kind of range, and shows its length',
    async (length) => {
      const inner = new MemoryBackend();
      const backend = new SealedBackend(inner, ring);
      const bytes = pattern(length, length);
      expect(await backend.save('a', bytes)).toBe(length);
      expect(Buffer.compare(await backend.load('a'), bytes)).toBe(0);
      expect(await backend.list('')).toEqual([{ key: 'a', sizeBytes: length }]);
      const again = new SealedBackend(inner, ring);
      const ends = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES, length].filter((at) => at <= length);
      for (const from of ends)
        for (const to of ends.filter((one) => one >= from)) {
          const range = { offsetBytes: from, lengthBytes: to - from };
          expect(Buffer.compare(await again.load('a', range), bytes.subarray(from, to))).toBe(0);
        }
    },
  );

  it('is read anew when it was replaced since it was opened', async () => {
    const inner = new MemoryBackend();
    const [reader, writer] = [new SealedBackend(inner, ring), new SealedBackend(inner, ring)];
    await writer.save('a', pattern(100, 1));
    await reader.load('a', { offsetBytes: 5, lengthBytes: 5 });
    await writer.replace('a', pattern(50, 2));
    const range = { offsetBytes: 40, lengthBytes: 10 };
    expect(Buffer.compare(await reader.load('a', range), pattern(50, 2).subarray(40))).toBe(0);
  });

  it('is not taken for another one, of the same storage or key', async () => {
    const inner = new MemoryBackend();
    const backend = new SealedBackend(inner, ring);
    await backend.save('vms/web1/packs/00000001', pattern(10, 1));
    await backend.save('vms/web1/packs/00000002', pattern(10, 2));
    await backend.save('vms/web2/packs/00000001', pattern(10, 3));
    const objects = await inner.list('vms/');
    for (const { key: from } of objects)
      for (const { key: to } of objects) {
        if (from === to) continue;
        const kept = await inner.load(to);
        await forge(inner, to, await inner.load(from));
        const codes = [];
        for (const { key } of await backend.list('vms/'))
          codes.push(
            await backend.load(key).then(
              () => '',
              (error: unknown) => (error as { code: string }).code,
            ),
          );
        expect(codes.filter((code) => code === 'REPO_DAMAGED')).toHaveLength(1);
        await forge(inner, to, kept);
      }
  });

  it('is refused when it is in the clear, or of a key that there is not', async () => {
    const inner = new MemoryBackend();
    await inner.save('a', pattern(200, 1));
    const backend = new SealedBackend(inner, ring);
    await expect(backend.load('a')).rejects.toMatchObject({
      code: 'REPO_DAMAGED',
      message: expect.stringContaining('not encrypted'),
    });
    await new SealedBackend(inner, ring.withNewKey()).save('b', pattern(10, 1));
    await expect(backend.load('b')).rejects.toMatchObject({ message: expect.stringContaining('key 2') });
  });

  it('of before a rotation is read after it', async () => {
    const inner = new MemoryBackend();
    await new SealedBackend(inner, ring).save('vms/web1/vm', pattern(10, 1));
    const rotated = new SealedBackend(inner, ring.withNewKey());
    expect(Buffer.compare(await rotated.load('vms/web1/vm'), pattern(10, 1))).toBe(0);
  });

  it(`is never accepted after ${MUTATIONS} changes, nor gives other bytes in a range`, async () => {
    const random = seeded(31);
    const inner = new MemoryBackend();
    const writer = new SealedBackend(inner, ring);
    const plain = new Map([
      ['a', pattern(300, 1)],
      ['b', pattern(300, 2)],
      ['c', pattern(2 * BLOCK_BYTES + 100, 3)],
    ]);
    for (const [key, bytes] of plain) await writer.save(key, bytes);
    const stored = new Map<string, Uint8Array>();
    for (const key of plain.keys()) stored.set(key, await inner.load(key));
    let accepted = 0;
    for (let n = 0; n < MUTATIONS; n++) {
      const key = n % 100 === 0 ? 'c' : 'ab'[random(2)]!;
      const bytes = stored.get(key)!;
      const changed = mutated(bytes, key === 'a' ? stored.get('b')! : stored.get('a')!, random);
      if (Buffer.compare(changed, bytes) === 0) continue;
      await forge(inner, key, changed);
      const reader = new SealedBackend(inner, ring);
      const outcome = await reader.load(key).then(
        () => 'accepted',
        (error: unknown) => (error as { code?: string }).code,
      );
      if (outcome === 'accepted') accepted++;
      else if (outcome !== 'REPO_DAMAGED') throw new Error(`${outcome ?? 'no code'} at change ${n}`);
      const offsetBytes = random(plain.get(key)!.length);
      const range = { offsetBytes, lengthBytes: 1 + random(plain.get(key)!.length - offsetBytes) };
      const part = await reader.load(key, range).catch(() => undefined);
      const right = plain.get(key)!.subarray(offsetBytes, offsetBytes + range.lengthBytes);
      if (part !== undefined && Buffer.compare(part, right) !== 0) accepted++;
      await forge(inner, key, bytes);
    }
    expect(accepted).toBe(0);
  });
});

/** One bit, a byte, an end cut off or added, a piece of another object, or two pieces swapped. */
function mutated(bytes: Uint8Array, other: Uint8Array, random: (bound: number) => number): Uint8Array {
  const copy = bytes.slice();
  const at = random(bytes.length);
  const length = 1 + random(64);
  switch (random(6)) {
    case 0:
      copy[at]! ^= 1 << random(8);
      return copy;
    case 1:
      return copy.subarray(0, at);
    case 2:
      return new Uint8Array(Buffer.concat([copy, pattern(length, at)]));
    case 3:
      copy.set(other.subarray(0, Math.min(other.length, bytes.length)), 0);
      return copy;
    case 4: {
      const from = random(bytes.length);
      copy.set(bytes.subarray(from, Math.min(from + length, bytes.length - Math.max(0, at - from))), at);
      return copy;
    }
    default:
      return new Uint8Array(
        Buffer.concat([copy.subarray(0, at), copy.subarray(Math.min(bytes.length, at + length))]),
      );
  }
}

describe('the storage of an encrypted repository', () => {
  it('shows no name of a VM, only how long it is in steps of 32 bytes', async () => {
    const inner = new MemoryBackend();
    const backend = new SealedBackend(inner, ring);
    const names = ['web1', 'database-of-customers', 'x'.repeat(31), 'x'.repeat(32), 'y'.repeat(200)];
    for (const name of names) await backend.save(`vms/${name}/packs/00000001`, new Uint8Array(1));
    const stored = (await inner.list('')).map(({ key }) => key);
    for (const name of names) expect(stored.join('\n')).not.toContain(name);
    const lengths = stored.map((key) => key.length).sort((a, b) => a - b);
    expect(lengths[0]).toBe(lengths[2]);
    expect(lengths[2]).toBeLessThan(lengths[3]!);
    for (const key of stored) for (const part of key.split('/')) expect(part.length).toBeLessThan(255);
    expect((await backend.list('vms/')).map(({ key }) => key)).toEqual(
      names.map((name) => `vms/${name}/packs/00000001`).sort(),
    );
    expect(await backend.list('vms/web')).toHaveLength(1);
    expect(await backend.list('vms/web1/')).toHaveLength(1);
    expect(await backend.list('vms/web1/packs/0000')).toHaveLength(1);
  });

  it('may hold names of others, which are no chains', async () => {
    const inner = new MemoryBackend();
    await inner.save('vms/web1/vm', new Uint8Array(100));
    await inner.save('vms/AAAA/vm', new Uint8Array(100));
    expect(await new SealedBackend(inner, ring).list('')).toEqual([]);
  });
});
