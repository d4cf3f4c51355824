import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createHash } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from '@jest/globals';

import { SLICE_ENTRIES } from '../../src/format/index-slice.js';
import { MAX_PATCH_RECORDS } from '../../src/format/frame-limits.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import { FileBackend } from '../../src/storage/file.js';
import { unlock } from '../../src/storage/sealing/open-sealed.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { IDENTITY, ModelVm, readBack, seeded } from '../unit/repository-model.js';
import { makeRepository } from './make-repository.js';
import { unseal } from './unseal.js';
import { verifyRepository, type VerifiedCheckpoint } from './verifier.js';

// The fixture lies in the source tree, this file runs from dist/.
const FIXTURE = fileURLToPath(new URL('../../../test/golden/repository-v1/', import.meta.url));
const top = mkdtempSync(join(tmpdir(), 'cairn-golden-'));
afterAll(() => rmSync(top, { recursive: true }));

const expected = JSON.parse(readFileSync(join(FIXTURE, 'expected.json'), 'utf8')) as VerifiedCheckpoint[];

describe('a repository of version 1, kept since that version was made', () => {
  it('is what the document says', () => {
    expect(verifyRepository(join(FIXTURE, 'repo'))).toEqual(expected);
  });

  it('is read by this version: every page, every device state, nothing damaged', async () => {
    // A copy: reading must not need to write, and the fixture stays as it is either way.
    cpSync(join(FIXTURE, 'repo'), join(top, 'copy'), { recursive: true });
    const repository = await Repository.open(new FileBackend(join(top, 'copy')));
    for (const one of expected) {
      const manifest = await repository.find(one.id);
      const { memory, deviceState } = await readBack(repository, manifest);
      expect(sha256(deviceState)).toBe(one.deviceStateSha256);
      for (const { id, firstPage, sizeBytes } of manifest.layout.regions) {
        const from = firstPage * PAGE_SIZE_BYTES;
        expect(sha256(memory.subarray(from, from + sizeBytes))).toBe(one.regions[id]);
      }
    }
    const result = await verify(repository);
    expect(result).toMatchObject({ problems: [], orphans: [], checkpoints: expected.length });
  });
});

describe('a repository written by this version', () => {
  it('is what the document says', async () => {
    const written = await makeRepository(join(top, 'new'));
    expect(verifyRepository(join(top, 'new', 'repo'))).toEqual(written);
  });

  it('is what the document says with a patch frame of as many pages as there may be', async () => {
    const repository = await Repository.init(new FileBackend(join(top, 'patches')));
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm(layOut([{ id: 'pc.ram', sizeBytes: MAX_PATCH_RECORDS * PAGE_SIZE_BYTES }]), 5);
    const random = seeded(6);
    for (const at of vm.memory.keys()) vm.memory[at] = random(256);
    await vm.checkpoint(chain);
    vm.memory.copyWithin(700, 0);
    await vm.checkpoint(chain);
    await chain.close();
    const [, second] = verifyRepository(join(top, 'patches'));
    expect(second!.regions).toEqual({ 'pc.ram': sha256(vm.memory) });
  });

  it('is what the document says with an index of several slices', async () => {
    const repository = await Repository.init(new FileBackend(join(top, 'slices')));
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm(layOut([{ id: 'pc.ram', sizeBytes: (SLICE_ENTRIES + 896) * PAGE_SIZE_BYTES }]), 5);
    for (let page = 0; page < SLICE_ENTRIES + 896; page++) vm.page(page)[page % 4096] = 1;
    await vm.checkpoint(chain);
    vm.page(SLICE_ENTRIES + 7)[9] = 3;
    await vm.checkpoint(chain);
    await chain.close();
    const [, second] = verifyRepository(join(top, 'slices'));
    expect(second!.regions).toEqual({ 'pc.ram': sha256(vm.memory) });
  });

  it('is what the document says when writers were cut off in it', () => {
    const repo = join(top, 'cut-off');
    cpSync(join(FIXTURE, 'repo'), repo, { recursive: true });
    mkdirSync(join(repo, 'vms/begun'));
    mkdirSync(join(repo, 'vms/locked/locks'), { recursive: true });
    const folders = readdirSync(repo, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ parentPath, name }) => join(parentPath, name));
    for (const folder of [repo, ...folders]) writeFileSync(join(folder, '~0-0-0-1-2-abc'), 'unfinished');
    expect(verifyRepository(repo)).toEqual(expected);
  });
});

describe('an encrypted repository of version 1, kept since that version was made', () => {
  const encrypted = fileURLToPath(new URL('../../../test/golden/encrypted-v1/', import.meta.url));
  const keyFile = readFileSync(join(encrypted, 'key'));

  it.each([
    ['passphrase', Buffer.from('correct horse')],
    ['key-file', keyFile],
  ] as const)('is what the document says, opened by its %s', (kind, secret) => {
    const out = join(top, `opened by ${kind}`);
    unseal(join(encrypted, 'repo'), kind, secret, out);
    expect(verifyRepository(out)).toEqual(expected);
  });

  it('is read by this version, and by no other key', async () => {
    const repo = join(top, 'encrypted');
    cpSync(join(encrypted, 'repo'), repo, { recursive: true });
    const backend = await unlock(new FileBackend(repo), { kind: 'key-file', bytes: keyFile });
    const result = await verify(await Repository.open(backend));
    expect(result).toMatchObject({ problems: [], orphans: [], checkpoints: expected.length });
    const other = { kind: 'key-file', bytes: Buffer.alloc(32, 1) } as const;
    await expect(unlock(new FileBackend(repo), other)).rejects.toMatchObject({ code: 'KEY_WRONG' });
  });
});

describe('the verifier itself', () => {
  it('refuses a repository with any one byte changed', () => {
    const random = seeded(3);
    const files = readdirSync(join(FIXTURE, 'repo'), { recursive: true, withFileTypes: true }).filter(
      (entry) => entry.isFile(),
    );
    for (const { parentPath, name } of files) {
      const copy = join(top, 'changed');
      if (existsSync(copy)) rmSync(copy, { recursive: true });
      cpSync(join(FIXTURE, 'repo'), copy, { recursive: true });
      const path = join(copy, join(parentPath, name).slice(join(FIXTURE, 'repo').length));
      const bytes = readFileSync(path);
      bytes[random(bytes.length)]! ^= 1 << random(8);
      writeFileSync(path, bytes);
      try {
        verifyRepository(copy);
      } catch {
        continue;
      }
      // Every index segment is named by some checkpoint, so no byte is without a checksum that is looked at.
      expect(path).toBe('noticed');
    }
  });
});

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
