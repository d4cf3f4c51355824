/** What regrouping meets on its way must not cost a checkpoint that would have been taken without it. */

import { describe, expect, it } from '@jest/globals';

import { CheckpointError } from '../../src/errors.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import type { ChainReader } from '../../src/repository/read/chain-reader.js';
import type { ChainWriter } from '../../src/repository/chain-writer.js';
import type { CheckpointWriter } from '../../src/repository/write/checkpoint-writer.js';
import type { Manifest } from '../../src/format/manifest.js';
import type { PageMap } from '../../src/repository/read/page-map.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import type { CallOptions, ObjectBody } from '../../src/storage/backend.js';
import { FaultyBackend, type FaultMode } from '../support/faulty-backend.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { commitFields, IDENTITY, ModelVm, mustReadBack, type Expected } from '../unit/repository-model.js';

const LAYOUT = layOut([{ id: 'pc.ram', sizeBytes: 128 * PAGE_SIZE_BYTES }]);
/** A base and seven increments: the next one regroups. */
const BEFORE = 8;

interface Chain {
  readonly repository: Repository;
  readonly chain: ChainWriter;
  readonly map: PageMap;
  readonly reader: ChainReader;
  readonly vm: ModelVm;
  readonly expected: Expected[];
}

async function open(backend: MemoryBackend | FaultyBackend, vm: ModelVm): Promise<Chain> {
  const repository = await Repository.open(backend);
  const chain = await repository.openChainWriter('web1', IDENTITY);
  const map = await vm.mapOf(chain, chain.latest);
  return { repository, chain, map, reader: chain.reader(), vm, expected: [] };
}

/** A chain that is about to be regrouped: some pages have changed in every checkpoint but will not in the next. */
async function prepare<T extends MemoryBackend>(backend: T): Promise<Chain & { backend: T }> {
  await Repository.init(backend);
  const vm = new ModelVm(LAYOUT);
  for (let page = 0; page < 110; page++) vm.page(page).forEach((_, at, all) => (all[at] = (at * page) >>> 3));
  const made = await open(backend, vm);
  for (let n = 0; n < BEFORE; n++) {
    for (let page = 40; page < 70; page++) vm.page(page)[50 + n] = 199;
    made.expected.push(vm.snapshot(await vm.checkpoint(made.chain, { map: made.map })));
  }
  vm.page(7)[7] = 7;
  return { ...made, backend };
}

async function copyOf(from: { readonly backend: MemoryBackend; readonly vm: ModelVm }) {
  const backend = new MemoryBackend();
  for (const { key } of await from.backend.list('')) await backend.save(key, await from.backend.load(key));
  const vm = new ModelVm(LAYOUT);
  vm.memory = from.vm.memory.slice();
  vm.committed = from.vm.committed.slice();
  return { backend, vm };
}

interface Outcome {
  readonly manifest: Manifest;
  readonly writer: CheckpointWriter;
  /** What a watcher would say of regrouping. */
  readonly warnings: readonly string[];
}

/** When records are regrouped: in the commit, as one-shot commands do, or before the checkpoint, as watchers do. */
type When = 'in the commit' | 'ahead';
const WHENS: readonly When[] = ['in the commit', 'ahead'];

async function checkpoint(made: Chain, when: When): Promise<Outcome> {
  const { chain, map, reader, vm, expected } = made;
  const warnings = when === 'ahead' ? await regroupAhead(made) : [];
  const parent = chain.latest!;
  const writer = await chain.begin({
    kind: 'incremental',
    parent,
    layout: vm.layout,
    map,
    regroupFrom: when === 'ahead' ? undefined : reader,
  });
  try {
    await vm.write(writer, map, vm.dirtyPages(), vm.committed);
    await writer.setDeviceState(vm.deviceState);
    const manifest = await writer.commit(commitFields());
    vm.committed = vm.memory.slice();
    expected.push(vm.snapshot(manifest));
    return { manifest, writer, warnings: [...warnings, ...writer.warnings] };
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

/** @returns what went wrong, which never fails the checkpoint */
async function regroupAhead({ chain, map, reader, vm }: Chain): Promise<readonly string[]> {
  const until = new AbortController().signal;
  try {
    await chain.regroupAhead({ map, layout: vm.layout, reader, level: 3, until });
    return [];
  } catch (error) {
    return [String(error)];
  }
}

async function mustBeWhole(backend: MemoryBackend, expected: readonly Expected[]): Promise<void> {
  const repository = await Repository.open(backend);
  for (const one of expected) await mustReadBack(repository, one);
  expect(await verify(repository)).toMatchObject({ problems: [], orphans: [] });
}

/** Has no room for the n-th object of a kind that is saved from now on. */
class FullBackend extends MemoryBackend {
  #left = Number.POSITIVE_INFINITY;
  #kind = '';

  refuse(kind: 'packs' | 'index' | 'checkpoints', nth: number): void {
    this.#kind = `/${kind}/`;
    this.#left = nth;
  }

  override async save(key: string, body: ObjectBody, options?: CallOptions): Promise<number> {
    if (key.includes(this.#kind) && --this.#left === 0)
      throw new CheckpointError('STORAGE_FULL', `no space left for ${key}`);
    return super.save(key, body, options);
  }
}

/** Flips a bit of an object that is there already. */
class RottenBackend extends MemoryBackend {
  rotten = '';

  override async load(
    key: string,
    range?: { readonly offsetBytes: number; readonly lengthBytes: number },
    options?: CallOptions,
  ): Promise<Uint8Array> {
    const bytes = await super.load(key, range, options);
    // In the first frame.
    if (key === this.rotten && (range?.offsetBytes ?? 0) <= 130 && bytes.length > 130)
      bytes[130 - (range?.offsetBytes ?? 0)]! ^= 1;
    return bytes;
  }
}

describe.each(WHENS)('regrouping %s', (when) => {
  it('takes place in the checkpoint that is prepared here', async () => {
    const made = await prepare(new MemoryBackend());
    const { manifest, writer, warnings } = await checkpoint(made, when);
    expect(manifest.regrouped?.pageCount).toBe(30);
    expect(writer.regrouped.pages).toBe(30);
    expect(warnings).toEqual([]);
    await mustBeWhole(made.backend, made.expected);
  });

  it.each([
    ['the regrouped pack', 'packs', when === 'ahead' ? 1 : 2],
    ['the segment that refers to it', 'index', 1],
    ['the manifest', 'checkpoints', 1],
  ] as const)('gives way when there is no room for %s', async (_, kind, nth) => {
    const made = await prepare(new FullBackend());
    made.backend.refuse(kind, nth);
    const { manifest, writer, warnings } = await checkpoint(made, when);
    expect(manifest.regrouped).toBeUndefined();
    expect(manifest.packs).toHaveLength(1);
    expect(writer.regrouped.pages).toBe(0);
    expect(warnings).toEqual([expect.stringContaining('no space left')]);
    expect(made.map.depthOf(50)).toBe(7);
    const sizes = await made.backend.list('');
    const own = sizes.filter(({ key }) => manifest.packs.some(({ seq }) => key.endsWith(hex8(seq))));
    expect(manifest.storedBytes).toBeGreaterThanOrEqual(own[0]!.sizeBytes);
    // The map is good for what comes next.
    made.vm.page(50)[1] = 1;
    await checkpoint(made, when);
    await made.chain.close();
    await mustBeWhole(made.backend, made.expected);
  });

  it('fails the checkpoint where there is no room without it either', async () => {
    const made = await prepare(new FullBackend());
    // Ahead of it, the pack of what is regrouped is the first.
    made.backend.refuse('packs', when === 'ahead' ? 2 : 1);
    await expect(checkpoint(made, when)).rejects.toMatchObject({ code: 'STORAGE_FULL' });
    await checkpoint(made, when);
    await made.chain.close();
    await mustBeWhole(made.backend, made.expected);
  });

  it('leaves records where they are when one of them is damaged, and says so', async () => {
    const made = await prepare(new RottenBackend());
    made.backend.rotten = (await made.backend.list('vms/web1/packs/'))[3]!.key;
    const { manifest, warnings } = await checkpoint(made, when);
    expect(manifest.regrouped).toBeUndefined();
    expect(warnings).toEqual([expect.stringContaining(made.backend.rotten)]);
    await made.chain.close();
    const { problems, orphans } = await verify(await Repository.open(made.backend));
    expect(problems.map(({ key }) => key)).toContain(made.backend.rotten);
    expect(orphans).toEqual([]);
    made.backend.rotten = '';
    await mustBeWhole(made.backend, made.expected);
  });

  it.each<FaultMode>(['fail', 'lost-reply', 'crash', 'crash-after', 'torn'])(
    'with a storage call that fails (%s), whichever it is, leaves what is committed whole',
    async (mode) => {
      let done = 0;
      let failed = 0;
      const prepared = await prepare(new MemoryBackend());
      await prepared.chain.close();
      const before = prepared.expected.slice(-2);
      for (let atCall = 1; ; atCall++) {
        const made = await copyOf(prepared);
        const expected = [...before];
        const faulty = new FaultyBackend(made.backend, { mode, atCall });
        const outcome = await open(faulty, made.vm)
          .then(async (chain) => {
            const { manifest } = await checkpoint(chain, when);
            expected.push(made.vm.snapshot(manifest));
            await chain.chain.close();
          })
          .then(
            () => 'done',
            () => 'failed',
          );
        if (outcome === 'done') done++;
        else failed++;
        const repository = await Repository.open(made.backend);
        await repository.unlock('web1', { force: true });
        for (const one of expected) await mustReadBack(repository, one);
        const { problems } = await verify(repository);
        // What was torn may be an object that counts: a manifest, which is damaged then and nothing else is.
        const torn =
          mode === 'torn' ? problems.filter(({ key }) => key === faulty.faultyCall.split(' ')[1]) : [];
        expect(problems.length).toBe(torn.length);
        if (faulty.calls < atCall) break;
      }
      expect(done).toBeGreaterThan(0);
      expect(failed).toBeGreaterThan(5);
    },
  );
});

function hex8(seq: number): string {
  return seq.toString(16).padStart(8, '0');
}
