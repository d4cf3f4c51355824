/**
 * Writes a small repository that uses all there is in the format, and what it must read back as. The one of version 1 is
 * kept in `repository-v1` and not written again, but once, before its release (docs/format.md, Changes); a
 * new version gets a folder of its own:
 *
 *     node dist/test/golden/make-repository.js test/golden/repository-vN
 */

import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

import { layOut, type MemoryLayout } from '../../src/hypervisor/memory-layout.js';
import type { Manifest } from '../../src/format/manifest.js';
import { Repository } from '../../src/repository/repository.js';
import { FileBackend } from '../../src/storage/file.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { IDENTITY, ModelVm } from '../unit/repository-model.js';
import type { VerifiedCheckpoint } from './verifier.js';

const LAYOUT = layOut([
  { id: 'pc.ram', sizeBytes: 150 * PAGE_SIZE_BYTES },
  { id: 'vga.vram', sizeBytes: 9 * PAGE_SIZE_BYTES },
]);
const WITH_DIMM = layOut([
  { id: 'dimm0', sizeBytes: 70 * PAGE_SIZE_BYTES },
  { id: 'pc.ram', sizeBytes: 150 * PAGE_SIZE_BYTES },
  { id: 'vga.vram', sizeBytes: 9 * PAGE_SIZE_BYTES },
]);

/** Makes the repository in `folder`/repo and `folder`/expected.json. @returns the latter's content */
export async function makeRepository(folder: string): Promise<readonly VerifiedCheckpoint[]> {
  mkdirSync(folder, { recursive: true });
  const repository = await Repository.init(new FileBackend(join(folder, 'repo')));
  const expected: VerifiedCheckpoint[] = [];
  const chain = await repository.openChainWriter('web1', IDENTITY);
  const vm = new ModelVm(LAYOUT, 11);
  const record = (of: ModelVm, manifest: Manifest): void => {
    expected.push({
      chain: manifest.chain,
      id: manifest.id,
      parentId: manifest.parentId,
      regions: regionHashes(of.memory, of.layout),
      deviceStateSha256: sha256(of.deviceState),
    });
  };
  vm.scribble(60);
  // Enough of them for a merge, for pages at the greatest depth, and for one that is stored whole after it.
  for (let n = 0; n < 11; n++) {
    vm.page(3)[n * 7] = n + 1;
    record(vm, await vm.checkpoint(chain, n === 0 ? { packTargetBytes: 8000 } : {}));
    if (n % 3 === 0) vm.scribble(2);
    // Moved and changed at once: patches, and patches on those.
    if (n > 5 && n < 10)
      vm.page(20 + n).set(vm.page(n > 7 ? 19 + n : 3, vm.committed).subarray(0, -512), 512);
  }
  const grown = new ModelVm(WITH_DIMM, 12);
  grown.memory.set(
    vm.memory.subarray(0, 150 * PAGE_SIZE_BYTES),
    WITH_DIMM.regions[1]!.firstPage * PAGE_SIZE_BYTES,
  );
  const vga = LAYOUT.regions[1]!.firstPage * PAGE_SIZE_BYTES;
  grown.memory.set(
    vm.memory.subarray(vga, vga + 9 * PAGE_SIZE_BYTES),
    WITH_DIMM.regions[2]!.firstPage * PAGE_SIZE_BYTES,
  );
  grown.committed = grown.memory.slice();
  grown.scribble(5);
  record(grown, await grown.checkpoint(chain));
  await chain.close();
  const second = await repository.openChainWriter('größe/2', { ...IDENTITY, name: 'größe/2', uuid: '' });
  const other = new ModelVm(LAYOUT, 13);
  record(other, await other.checkpoint(second));
  await second.close();
  expected.sort((a, b) => (a.chain < b.chain ? -1 : a.chain > b.chain ? 1 : 0));
  writeFileSync(join(folder, 'expected.json'), `${JSON.stringify(expected, undefined, 2)}\n`);
  return expected;
}

function regionHashes(memory: Uint8Array, layout: MemoryLayout): Record<string, string> {
  return Object.fromEntries(
    layout.regions.map(({ id, firstPage, sizeBytes }) => {
      const from = firstPage * PAGE_SIZE_BYTES;
      return [id, sha256(memory.subarray(from, from + sizeBytes))];
    }),
  );
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

const target = process.argv[2];
if (target !== undefined && import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  await makeRepository(target);
}
