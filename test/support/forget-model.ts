/** Forgetting in a repository whose contents are known, and what must hold afterwards. */

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

import { expect } from '@jest/globals';

import { ChainKeys } from '../../src/format/chain-keys.js';
import { forget, type ForgetOptions, type ForgetResult } from '../../src/repository/forget/forget.js';
import { manifestKey } from '../../src/format/manifest.js';
import { Repository } from '../../src/repository/repository.js';
import { isMark } from '../../src/repository/write/sequence-mark.js';
import type { SweepSource } from '../../src/repository/forget/sweep-plan.js';
import { verify } from '../../src/repository/verify/verify.js';
import type { StorageBackend } from '../../src/storage/backend.js';
import { verifyRepository } from '../golden/verifier.js';
import { mustReadBack, type Expected } from '../unit/repository-model.js';

export function sourceOf(repository: Repository, chain = 'web1', backend = repository.backend): SweepSource {
  return { backend, repositoryId: repository.id, keys: new ChainKeys(chain) };
}

/** Forgets the checkpoints with these ids. */
export async function forgetIds(
  repository: Repository,
  ids: readonly string[],
  options: ForgetOptions = {},
): Promise<ForgetResult> {
  const { manifests } = await repository.checkpoints('web1');
  const leaving = manifests.filter(({ id }) => ids.includes(id));
  return forget(sourceOf(repository), { manifestKeys: new Set(leaving.map(manifestKey)) }, options);
}

/** All that is there reads back as it was, to this reader and to the one of test/golden, and verifies. */
export async function mustBeWhole(backend: StorageBackend, expected: readonly Expected[]): Promise<void> {
  const repository = await Repository.open(backend);
  const { manifests, damaged } = await repository.checkpoints();
  expect(damaged).toEqual([]);
  expect(manifests.map(({ id }) => id)).toEqual(expected.map(({ id }) => id));
  for (const one of expected) await mustReadBack(repository, one);
  expect((await verify(repository)).problems).toEqual([]);
  const folder = mkdtempSync(join(tmpdir(), 'cairn-forget-'));
  try {
    for (const { key } of await backend.list('')) {
      mkdirSync(dirname(join(folder, key)), { recursive: true });
      writeFileSync(join(folder, key), await backend.load(key));
    }
    // The verifier looks for this folder, also when all checkpoints of the chain are forgotten and none made it.
    mkdirSync(join(folder, 'vms/web1/checkpoints'), { recursive: true });
    expect(verifyRepository(folder).map(({ id }) => id)).toEqual(expected.map(({ id }) => id));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Packs and segments to which nothing leads, marks of the highest numbers not counted. */
export async function strays(repository: Repository): Promise<readonly string[]> {
  const { orphans } = await verify(repository);
  const found: string[] = [];
  for (const key of orphans)
    if (!(await isMark(repository.backend, await repository.backend.stat(key), {}))) found.push(key);
  return found;
}

/** Of all objects but the reserves, which checkpoints neither grow nor shrink. */
export async function storedBytes(backend: StorageBackend): Promise<number> {
  const objects = (await backend.list('')).filter(({ key }) => !key.includes('/reserve/'));
  return objects.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
}
