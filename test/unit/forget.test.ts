/** Checkpoints are forgotten: what goes, what is said of it, and what others meet who are reading or writing meanwhile. */

import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, afterEach, describe, expect, it } from '@jest/globals';

import { ChainKeys, ownerTag } from '../../src/format/chain-keys.js';
import { Calendar } from '../../src/repository/forget/calendar.js';
import { diffCheckpoints } from '../../src/repository/diff.js';
import { forget } from '../../src/repository/forget/forget.js';
import { manifestKey } from '../../src/format/manifest.js';
import { openSealedJson, sealJson } from '../../src/format/sealed-json.js';
import { Repository } from '../../src/repository/repository.js';
import { verify } from '../../src/repository/verify/verify.js';
import { FileBackend } from '../../src/storage/file.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { CAIRN_MAIN } from '../support/cairn-main.js';
import { forgetIds, mustBeWhole, sourceOf, storedBytes, strays } from '../support/forget-model.js';
import { IDENTITY, ModelVm, mustReadBack, readBack, type Expected } from './repository-model.js';

const KEYS = new ChainKeys('web1');

interface Chain {
  readonly backend: MemoryBackend;
  readonly repository: Repository;
  readonly vm: ModelVm;
  readonly all: Expected[];
}

async function chainOf(count: number, into?: FileBackend): Promise<Chain> {
  const backend = (into ?? new MemoryBackend()) as MemoryBackend;
  const repository = await Repository.init(backend);
  const chain: Chain = { backend, repository, vm: new ModelVm(), all: [] };
  chain.vm.scribble(120);
  await continueChain(chain, count);
  return chain;
}

async function continueChain({ repository, vm, all }: Chain, count: number, base = false): Promise<void> {
  const chain = await repository.openChainWriter('web1', IDENTITY);
  for (let n = 0; n < count; n++) {
    vm.scribble(10);
    // Some pages change each time: of their deltas most are not needed once their checkpoints are gone.
    for (let page = 0; page < 8; page++) vm.page(page)[100 + all.length] = 1 + all.length;
    const asBase = base && n === 0;
    if (asBase) vm.committed = new Uint8Array(vm.memory.length);
    all.push(vm.snapshot(await vm.checkpoint(chain, asBase ? { parent: null } : {})));
  }
  await chain.close();
}

/** Gives a time that ends at a certain call. */
class HastyBackend extends MemoryBackend {
  #left = Infinity;
  #due = new AbortController();

  async within<T>(calls: number, work: (until: AbortSignal) => Promise<T>): Promise<T> {
    this.#left = calls;
    this.#due = new AbortController();
    try {
      return await work(this.#due.signal);
    } finally {
      this.#left = Infinity;
    }
  }

  override load(...given: Parameters<MemoryBackend['load']>): Promise<Uint8Array> {
    this.#count();
    return super.load(...given);
  }

  override remove(...given: Parameters<MemoryBackend['remove']>): Promise<void> {
    this.#count();
    return super.remove(...given);
  }

  #count(): void {
    if (--this.#left === 0) this.#due.abort();
  }
}

function ids(expected: readonly Expected[]): readonly string[] {
  return expected.map(({ id }) => id);
}

/** An object that begins as those of a chain do. */
function ofChain({ repository }: Chain, magic: string, seq: number, name = 'web1'): Uint8Array {
  const bytes = Buffer.alloc(5000);
  bytes.write(magic, 0, 'latin1');
  bytes.writeUInt16LE(1, 8);
  bytes.writeUInt32LE(seq, 12);
  bytes.set(ownerTag(repository.id, name), 16);
  return bytes;
}

describe('what is forgotten', () => {
  it('is gone with all that only it needed: a chain before a new base leaves nothing', async () => {
    const chain = await chainOf(6);
    await continueChain(chain, 3, true);
    const before = await chain.backend.list(KEYS.packs);
    const result = await forgetIds(chain.repository, ids(chain.all.slice(0, 6)));
    expect(result).toMatchObject({ thinnedPacks: 0, problems: [] });
    const after = await chain.backend.list(KEYS.packs);
    expect(after).toEqual(before.slice(6));
    expect(await chain.backend.list(KEYS.checkpoints)).toHaveLength(3);
    await mustBeWhole(chain.backend, chain.all.slice(6));
  });

  it('leaves behind what others are based on, thinned where that is worth it', async () => {
    const chain = await chainOf(30);
    const before = await storedBytes(chain.backend);
    const result = await forgetIds(chain.repository, ids(chain.all.slice(0, 29)));
    expect(result.thinnedPacks).toBeGreaterThan(3);
    expect(before - (await storedBytes(chain.backend))).toBe(result.freedBytes);
    expect(result.freedBytes).toBeGreaterThan(before / 5);
    await mustBeWhole(chain.backend, chain.all.slice(29));
    expect(await strays(chain.repository)).toEqual([]);
  });

  it('leaves no whole patch frame behind for some of its pages, unless others are held against all of them', async () => {
    for (const hasSources of [false, true]) {
      const chain = await chainOf(1);
      chain.vm.hasSources = hasSources;
      /** These pages get contents that have nothing to do with any other. */
      const rewrite = async (from: number, to: number): Promise<void> => {
        for (let page = from; page < to; page++) chain.vm.page(page).set(randomBytes(4096));
        await continueChain(chain, 1);
      };
      await rewrite(0, 60);
      await rewrite(0, 60);
      await rewrite(8, 52);
      const before = await storedBytes(chain.backend);
      const result = await forgetIds(chain.repository, ids(chain.all.slice(0, 3)));
      await mustBeWhole(chain.backend, chain.all.slice(3));
      expect(await strays(chain.repository)).toEqual([]);
      expect(before - (await storedBytes(chain.backend))).toBe(result.freedBytes);
      // The last frame and what the last but one has beside it, and nothing more of random pages.
      const packBytes = (await chain.backend.list(KEYS.packs)).reduce(
        (sum, { sizeBytes }) => sum + sizeBytes,
        0,
      );
      if (hasSources) expect(packBytes).toBeGreaterThan(104 * 4096);
      else expect(packBytes).toBeLessThan(80 * 4096);
    }
  });

  it('gives up pages of a patch frame that is held against others, once', async () => {
    const chain = await chainOf(1);
    for (let n = 0; n < 2; n++) {
      for (let page = 0; page < 60; page++) chain.vm.page(page).set(randomBytes(4096));
      await continueChain(chain, 1);
    }
    for (let page = 8; page < 52; page++) chain.vm.page(page).fill(0);
    await continueChain(chain, 1);
    await forgetIds(chain.repository, ids(chain.all.slice(0, 3)));
    await mustBeWhole(chain.backend, chain.all.slice(3));
    expect(await strays(chain.repository)).toEqual([]);
    // All of the first frame, since the second is held against it, and 16 pages of the second.
    expect(await storedBytes(chain.backend)).toBeLessThan(90 * 4096);
    expect(await forgetIds(chain.repository, [])).toMatchObject({ thinnedPacks: 0, removedObjects: 0 });
  });

  it('goes in parts when each time is ended early, and is whole and said rightly after each', async () => {
    const made = await chainOf(6);
    const backend = new HastyBackend();
    for (const { key } of await made.backend.list('')) await backend.save(key, await made.backend.load(key));
    const chain = { ...made, backend, repository: await Repository.open(backend) };
    const kept = chain.all.slice(5);
    const before = await storedBytes(backend);
    let freedBytes = 0;
    let cutShort = 0;
    let result = await backend.within(1, (until) =>
      forgetIds(chain.repository, ids(chain.all.slice(0, 5)), { until }),
    );
    // The checkpoints are gone, and nothing else: there was no time to look.
    expect(result).toMatchObject({ isSwept: false, isCutShort: true, removedObjects: 0, thinnedPacks: 0 });
    expect(result.removed).toHaveLength(5);
    for (let calls = 5; result.isCutShort; calls += 5) {
      freedBytes += result.freedBytes;
      cutShort++;
      await mustBeWhole(backend, kept);
      result = await backend.within(calls, (until) => forgetIds(chain.repository, [], { until }));
    }
    expect(result.isSwept).toBe(true);
    expect(before - (await storedBytes(backend))).toBe(freedBytes + result.freedBytes);
    expect(cutShort).toBeGreaterThan(2);
    await mustBeWhole(backend, kept);
    // What was thinned once is not thinned again.
    expect(await forgetIds(chain.repository, [])).toMatchObject({ thinnedPacks: 0, removedObjects: 0 });
    const atOnce = await forgetIds(made.repository, ids(made.all.slice(0, 5)));
    expect(freedBytes + result.freedBytes).toBe(atOnce.freedBytes);
  });

  it('is what a dry run says, which changes nothing and needs no lock', async () => {
    const chain = await chainOf(12);
    const writer = await chain.repository.openChainWriter('web1', IDENTITY);
    const before = await chain.backend.list('');
    const choice = { policy: { last: 3 }, calendar: new Calendar('UTC') };
    const planned = await forget(sourceOf(chain.repository), choice, { dryRun: true });
    expect(await chain.backend.list('')).toEqual(before);
    await writer.close();
    const done = await forget(sourceOf(chain.repository), choice);
    expect(planned.removed).toEqual(done.removed);
    expect(planned.kept).toEqual(done.kept);
    expect(planned).toMatchObject({ removedObjects: done.removedObjects, thinnedPacks: done.thinnedPacks });
    expect(planned.removed).toHaveLength(9);
  });

  it('may be all there is; the chain begins anew, with new numbers', async () => {
    const chain = await chainOf(3);
    await forgetIds(chain.repository, ids(chain.all));
    expect((await chain.repository.checkpoints()).manifests).toEqual([]);
    expect(await strays(chain.repository)).toEqual([]);
    chain.all.length = 0;
    chain.vm.committed = new Uint8Array(chain.vm.memory.length);
    await continueChain(chain, 2);
    const { manifests } = await chain.repository.checkpoints();
    expect(manifests.map(({ kind }) => kind)).toEqual(['base', 'incremental']);
    expect(manifests[0]!.packs[0]!.seq).toBeGreaterThan(3);
    await mustBeWhole(chain.backend, chain.all);
  });
});

describe('orphans of a crash', () => {
  it('go with the next one', async () => {
    const chain = await chainOf(3);
    await chain.backend.save(KEYS.pack(9), ofChain(chain, 'CAIRNPAK', 9));
    await chain.backend.save(KEYS.segment(9), ofChain(chain, 'CAIRNIDX', 9));
    await chain.backend.save(`${KEYS.packs}notes`, new Uint8Array(5));
    const result = await forgetIds(chain.repository, []);
    expect(result).toMatchObject({ removed: [], removedObjects: 2, freedBytes: 10_000 });
    const keys = (await chain.backend.list('')).map(({ key }) => key);
    expect(keys).not.toContain(KEYS.pack(9));
    // Not ours.
    expect(keys).toContain(`${KEYS.packs}notes`);
    await continueChain(chain, 1);
    const { packs } = await chain.repository.find('latest');
    expect(packs[0]!.seq).toBeGreaterThan(9);
  });
});

describe('what lies among orphans and is not of the chain', () => {
  it.each([
    ['a file of somebody', () => new Uint8Array(5000).fill(65)],
    ['an empty file', () => new Uint8Array(0)],
    ['an object of another chain', (chain: Chain) => ofChain(chain, 'CAIRNPAK', 9, 'web2')],
    ['an object of another number', (chain: Chain) => ofChain(chain, 'CAIRNPAK', 8)],
  ] as const)('stays, and is named: %s', async (_, bytes) => {
    const chain = await chainOf(3);
    for (const key of [KEYS.pack(9), KEYS.segment(9)]) await chain.backend.save(key, bytes(chain));
    for (const dryRun of [true, false]) {
      const result = await forgetIds(chain.repository, [], { dryRun });
      expect(result).toMatchObject({ removedObjects: 0, freedBytes: 0 });
      expect(result.problems).toEqual([
        expect.stringContaining(KEYS.pack(9)),
        expect.stringContaining(KEYS.segment(9)),
      ]);
    }
    const keys = (await chain.backend.list('')).map(({ key }) => key);
    expect(keys).toEqual(expect.arrayContaining([KEYS.pack(9), KEYS.segment(9)]));
    await continueChain(chain, 1);
  });
});

describe('a chain with checkpoints that are dated later than now', () => {
  const policy = { policy: { last: 1 }, calendar: new Calendar('UTC'), nowMs: 0 };

  it('is left alone by a policy, unless it is told to keep those', async () => {
    const chain = await chainOf(4);
    const before = await chain.backend.list('');
    await expect(forget(sourceOf(chain.repository), policy)).rejects.toMatchObject({
      code: 'CHECKPOINT_MISDATED',
      message: expect.stringContaining(chain.all[0]!.id),
      hint: expect.stringContaining('--keep-misdated'),
      detail: { checkpointIds: ids(chain.all) },
    });
    expect(await chain.backend.list('')).toEqual(before);
    const result = await forget(sourceOf(chain.repository), { ...policy, keepMisdated: true });
    expect(result.misdated).toHaveLength(4);
    expect(result.removed).toEqual([]);
    await mustBeWhole(chain.backend, chain.all);
  });

  it('says so in a dry run', async () => {
    const chain = await chainOf(2);
    const result = await forget(sourceOf(chain.repository), policy, { dryRun: true });
    expect(result.misdated.map(({ id }) => id)).toEqual(ids(chain.all));
  });

  it('loses them by their ids', async () => {
    const chain = await chainOf(3);
    await forgetIds(chain.repository, ids(chain.all.slice(2)));
    await mustBeWhole(chain.backend, chain.all.slice(0, 2));
  });
});

describe('a chain that is being written', () => {
  it('is left alone', async () => {
    const chain = await chainOf(3);
    const writer = await chain.repository.openChainWriter('web1', IDENTITY);
    const before = await chain.backend.list('');
    await expect(forgetIds(chain.repository, ids(chain.all.slice(0, 1)))).rejects.toMatchObject({
      code: 'REPO_LOCKED',
    });
    expect(await chain.backend.list('')).toEqual(before);
    await writer.close();
  });

  it('is left alone as well once somebody has removed the lock of a forget by force', async () => {
    const chain = await chainOf(8);
    const { backend, repository } = chain;
    const remove = backend.remove.bind(backend);
    let removed = 0;
    backend.remove = async (key, options) => {
      await remove(key, options);
      if (key.startsWith(KEYS.checkpoints) && ++removed === 2)
        await repository.unlock('web1', { force: true });
    };
    await expect(forgetIds(repository, ids(chain.all.slice(0, 5)))).rejects.toMatchObject({
      code: 'REPO_LOCKED',
    });
    expect(removed).toBe(2);
    await mustBeWhole(backend, chain.all.slice(2));
  });
});

describe('a reader', () => {
  it('of a checkpoint that stays goes on while packs are thinned under it', async () => {
    const chain = await chainOf(20);
    const manifest = await chain.repository.find('latest');
    const reader = chain.repository.reader(manifest, { cacheBytes: 0 });
    const pages = Uint32Array.of(...Array.from({ length: 300 }, (_, page) => page));
    const into = new Uint8Array(300 * 4096);
    await reader.readPages(pages, into);
    const result = await forgetIds(chain.repository, ids(chain.all.slice(0, 19)));
    expect(result.thinnedPacks).toBeGreaterThan(0);
    const again = new Uint8Array(into.length);
    await reader.readPages(pages, again);
    expect(Buffer.compare(into, again)).toBe(0);
  });

  it('of one that is forgotten is told so, and never given other pages', async () => {
    const chain = await chainOf(20);
    const open = await Promise.all(
      chain.all.slice(0, 19).map(async ({ id }) => {
        const reader = chain.repository.reader(await chain.repository.find(id), { cacheBytes: 0 });
        await reader.index();
        return reader;
      }),
    );
    await forgetIds(chain.repository, ids(chain.all.slice(0, 19)), { thinAbove: 0 });
    let told = 0;
    for (const [i, reader] of open.entries()) {
      const before = chain.all[i]!.memory;
      for (let page = 0; page < 300; page++) {
        const into = new Uint8Array(4096);
        try {
          await reader.readPages(Uint32Array.of(page), into);
        } catch (error) {
          expect(error).toMatchObject({ code: 'CHECKPOINT_GONE' });
          told++;
          continue;
        }
        expect(Buffer.compare(into, before.subarray(page * 4096, (page + 1) * 4096))).toBe(0);
      }
      await expect(reader.deviceState()).rejects.toMatchObject({ code: 'CHECKPOINT_GONE' });
    }
    expect(told).toBeGreaterThan(100);
  });

  it('that looks for one between its listing and its end is told so, and damage stays damage', async () => {
    const { backend, repository, all } = await chainOf(3);
    const load = backend.load.bind(backend);
    const manifest = await repository.find(all[0]!.id);
    backend.load = async (key, range, options) => {
      if (key === manifestKey(manifest)) await backend.remove(key).catch(() => undefined);
      return load(key, range, options);
    };
    await expect(repository.find(all[0]!.id)).rejects.toMatchObject({ code: 'CHECKPOINT_GONE' });
    const { manifests, damaged } = await repository.checkpoints();
    expect(manifests).toHaveLength(2);
    expect(damaged).toEqual([]);
    backend.load = load;
    await backend.remove(KEYS.pack(1));
    await expect(readBack(repository, await repository.find(all[1]!.id))).rejects.toMatchObject({
      code: 'REPO_DAMAGED',
    });
  });

  it('that verifies meanwhile is told that what it read is gone', async () => {
    const { backend, repository, all } = await chainOf(5);
    const stat = backend.stat.bind(backend);
    let isForgotten = false;
    backend.stat = async (key, options) => {
      if (key === KEYS.pack(1) && !isForgotten) {
        isForgotten = true;
        await forgetIds(repository, ids(all));
      }
      return stat(key, options);
    };
    await expect(verify(repository)).rejects.toMatchObject({ code: 'CHECKPOINT_GONE' });
  });
});

describe('damage', () => {
  it('of a pack keeps everything that it may be based on', async () => {
    const chain = await chainOf(12);
    const { backend, repository, all } = chain;
    const bytes = await backend.load(KEYS.pack(8));
    bytes[200]! ^= 1;
    await backend.replace(KEYS.pack(8), bytes);
    const before = await backend.list(KEYS.packs);
    const result = await forgetIds(repository, ids(all.slice(0, 11)), { thinAbove: 0 });
    expect(result.problems).toHaveLength(1);
    expect(result.problems[0]).toContain(KEYS.pack(8));
    expect((await backend.list(KEYS.packs)).slice(0, 8)).toEqual(before.slice(0, 8));
    // Once it is repaired, nothing is lost.
    bytes[200]! ^= 1;
    await backend.replace(KEYS.pack(8), bytes);
    await mustReadBack(repository, all[11]!);
    expect((await forgetIds(repository, [])).problems).toEqual([]);
    await mustBeWhole(backend, all.slice(11));
  });

  it('that is met only when a pack is written anew ends it there', async () => {
    const { backend, repository, all } = await chainOf(20);
    // Of the base, on which most are based, once all is planned.
    const replace = backend.replace.bind(backend);
    let last = '';
    backend.replace = async (key, body, options) => {
      if (last === '') {
        const bytes = await backend.load(KEYS.pack(1));
        for (let at = 100; at < bytes.length - 3000; at += 50) bytes[at]! ^= 1;
        await replace(KEYS.pack(1), bytes);
      }
      last = key;
      return replace(key, body, options);
    };
    const packs = await backend.list(KEYS.packs);
    const { problems } = await forgetIds(repository, ids(all.slice(0, 19)), { thinAbove: 0 });
    expect(problems).toEqual([expect.stringContaining(KEYS.pack(1))]);
    // What lies below the pack where it ended.
    const at = packs.findIndex(({ key }) => key === last);
    expect(at).toBeGreaterThan(1);
    expect((await backend.list(KEYS.packs)).slice(0, at)).toEqual(packs.slice(0, at));
  });

  it('of a manifest keeps all packs, until it is named', async () => {
    const { backend, repository, all } = await chainOf(6);
    const broken = await repository.find(all[2]!.id);
    const bytes = await backend.load(manifestKey(broken));
    bytes[10]! ^= 1;
    await backend.replace(manifestKey(broken), bytes);
    const kept = await forgetIds(repository, [all[0]!.id]);
    expect(kept).toMatchObject({ removedObjects: 0, thinnedPacks: 0 });
    expect(kept.problems).toHaveLength(1);
    expect(kept.removed).toHaveLength(1);
    const { object } = await repository.locate(all[2]!.id);
    const named = await forget(sourceOf(repository), { manifestKeys: new Set([object.key]) });
    expect(named).toMatchObject({ problems: [], removed: [{ id: all[2]!.id, manifest: null }] });
    await mustBeWhole(backend, [all[1]!, ...all.slice(3)]);
  });

  it('of the disk while a pack is written anew leaves that one as it is', async () => {
    const { backend, repository, all } = await chainOf(20);
    const replace = backend.replace.bind(backend);
    backend.replace = async (key, body, options) => {
      await replace(key, body, options);
      throw new Error('the disk is gone');
    };
    await expect(forgetIds(repository, ids(all.slice(0, 19)), { thinAbove: 0 })).rejects.toThrow('the disk');
    backend.replace = replace;
    await mustBeWhole(backend, all.slice(19));
  });
});

describe('what is left', () => {
  it('can be compared, although checkpoints in between are gone', async () => {
    const { repository, all } = await chainOf(9);
    const [a, b] = [await repository.find(all[1]!.id), await repository.find(all[7]!.id)];
    const before = await diffCheckpoints(repository, a, b);
    await forgetIds(repository, ids(all.filter((_, i) => i !== 1 && i !== 7)), { thinAbove: 0 });
    expect(await diffCheckpoints(repository, a, b)).toEqual(before);
    expect(before.pages).toBeGreaterThan(10);
  });
});

describe('cairn forget', () => {
  const dir = mkdtempSync(join(tmpdir(), 'cairn-forget-cli-'));
  let count = 0;
  afterEach(() => rmSync(join(dir, `repo${count - 1}`), { recursive: true, force: true }));
  afterAll(() => rmSync(dir, { recursive: true }));

  async function cairn(
    repo: string,
    args: readonly string[],
  ): Promise<{ exitCode: number | null; out: string; messages: readonly Record<string, unknown>[] }> {
    const child = spawn(process.execPath, [CAIRN_MAIN, ...args, '--repo', repo], {
      env: { ...process.env, NODE_OPTIONS: '', TZ: 'UTC' },
    });
    let out = '';
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => (out += chunk));
    const [exitCode] = (await once(child, 'close')) as [number | null];
    const isJson = args.includes('--json');
    const messages = isJson ? out.trim().split('\n').filter(Boolean) : [];
    return { exitCode, out, messages: messages.map((line) => JSON.parse(line) as Record<string, unknown>) };
  }

  async function fileChain(checkpoints: number): Promise<Chain & { repo: string }> {
    const repo = join(dir, `repo${count++}`);
    return { ...(await chainOf(checkpoints, new FileBackend(repo))), repo };
  }

  it('by a policy: says what is kept and why, and what goes', async () => {
    const chain = await fileChain(6);
    const args = ['forget', '--keep-last', '2', '--keep-monthly', '1'];
    const dry = await cairn(chain.repo, [...args, '--dry-run']);
    expect(dry.exitCode).toBe(0);
    expect(dry.out).toContain('web1: 2 kept, 4 would be removed');
    expect(dry.out).toMatch(new RegExp(`${chain.all[5]!.id} .* keep +last, monthly`));
    expect(dry.out).toMatch(new RegExp(`${chain.all[0]!.id} .* would remove`));
    await mustBeWhole(chain.backend, chain.all);
    const done = await cairn(chain.repo, [...args, '--json']);
    expect(done.exitCode).toBe(0);
    expect(done.messages.filter((message) => message.message_type === 'summary')).toEqual([
      expect.objectContaining({
        name: 'web1',
        dry_run: false,
        kept: [
          { checkpoint_id: chain.all[4]!.id, time: expect.anything(), reasons: ['last'] },
          { checkpoint_id: chain.all[5]!.id, time: expect.anything(), reasons: ['last', 'monthly'] },
        ],
        removed: chain.all.slice(0, 4).map(({ id }) => expect.objectContaining({ checkpoint_id: id })),
      }),
    ]);
    await mustBeWhole(chain.backend, chain.all.slice(4));
  });

  /** The newest checkpoint is dated some years ahead. @returns its id */
  async function misdateNewest({ backend, repository }: Chain): Promise<string> {
    const { object } = await repository.locate('latest', 'web1');
    const fields = openSealedJson(object.key, await backend.load(object.key));
    const time = new Date(Date.now() + 5 * 365 * 86_400_000).toISOString();
    await backend.replace(object.key, sealJson({ ...fields, time }));
    return (await repository.find('latest')).id;
  }

  it('by a policy: not while a checkpoint is dated later than now, unless it is told to', async () => {
    const chain = await fileChain(4);
    const newest = await misdateNewest(chain);
    const args = ['forget', '--keep-within', '1d', '--keep-last', '1', '--json'];
    const refused = await cairn(chain.repo, args);
    expect(refused.exitCode).toBe(22);
    expect(refused.messages.at(-1)).toMatchObject({
      code: 'CHECKPOINT_MISDATED',
      message: expect.stringContaining(newest),
    });
    const { manifests } = await chain.repository.checkpoints();
    expect(manifests).toHaveLength(4);
    const done = await cairn(chain.repo, [...args, '--keep-misdated']);
    expect(done.exitCode).toBe(0);
    expect(done.messages.filter((message) => !('task' in message))).toEqual([
      { message_type: 'status', warning: expect.stringContaining(newest) },
      expect.objectContaining({
        misdated: [{ checkpoint_id: newest, time: expect.anything() }],
        removed: [],
      }),
    ]);
    const alone = await cairn(chain.repo, ['forget', newest, '--keep-misdated']);
    expect(alone.exitCode).toBe(2);
  });

  it.each([
    ['y', 0, 2],
    ['n', 22, 4],
  ])('asks at a terminal about checkpoints dated later than now: %s', async (answer, exitCode, left) => {
    const chain = await fileChain(4);
    await misdateNewest(chain);
    const command = [process.execPath, CAIRN_MAIN, 'forget', '--keep-last', '1', '--repo', chain.repo];
    // `script` gives it a terminal.
    const child = spawn('script', ['-qec', command.join(' '), '/dev/null'], {
      env: { ...process.env, NODE_OPTIONS: '' },
    });
    let out = '';
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      out += chunk;
      if (chunk.includes('[y/N]')) child.stdin.write(`${answer}\n`);
    });
    const [code] = (await once(child, 'close')) as [number | null];
    expect(out).toContain('dated later than now');
    expect(code).toBe(exitCode);
    expect((await chain.repository.checkpoints()).manifests).toHaveLength(left);
  });

  it('by ids, of which the starts are enough', async () => {
    const chain = await fileChain(4);
    const [first, second] = chain.all;
    expect((await cairn(chain.repo, ['forget', first!.id.slice(0, 8), second!.id])).exitCode).toBe(0);
    await mustBeWhole(chain.backend, chain.all.slice(2));
    const unknown = await cairn(chain.repo, ['forget', first!.id, '--json']);
    expect(unknown).toMatchObject({ exitCode: 1, messages: [{ code: 'CHECKPOINT_NOT_FOUND' }] });
    expect((await cairn(chain.repo, ['prune'])).out).toContain('web1: 2 kept, 0 removed');
  });

  it('lists the disk snapshots that stay, with what removes them, and says which it could not remove', async () => {
    const chain = await fileChain(3);
    const [first, second] = ids(chain.all);
    const remedy = 'qemu-img snapshot -d cairn-1 /srv/web1.qcow2';
    const listed = await cairn(chain.repo, ['forget', first!]);
    expect(listed).toMatchObject({ exitCode: 0, out: expect.stringContaining(remedy) });
    const tried = await cairn(chain.repo, ['forget', second!, '--with-disks', '--json']);
    const summary = tried.messages.find((message) => message.message_type === 'summary');
    expect(summary?.disks).toEqual([
      expect.objectContaining({
        checkpoint_id: second,
        mode: 'internal',
        remedy,
        why: expect.stringMatching(/./),
      }),
    ]);
    expect(tried.exitCode).toBe(3);
    await mustBeWhole(chain.backend, chain.all.slice(2));
  });

  it('removes nothing when the VM whose disks it is to see to cannot be reached', async () => {
    const chain = await fileChain(2);
    const vm = ['--with-disks', '--vm', `qmp:${join(dir, 'nowhere')}`];
    const { exitCode } = await cairn(chain.repo, ['forget', chain.all[0]!.id, ...vm]);
    expect(exitCode).toBe(21);
    await mustBeWhole(chain.backend, chain.all);
  });

  it.each([
    ['nothing that says what', []],
    ['ids and a policy', ['3f9a', '--keep-last', '3']],
    ['a policy that keeps nothing', ['--keep-last', '0']],
    ['a length of time that is none', ['--keep-within', 'soon']],
    ['a VM without disks to see to', ['--keep-last', '1', '--vm', 'qmp:/x']],
  ])('refuses %s', async (_, args) => {
    const chain = await fileChain(2);
    expect((await cairn(chain.repo, ['forget', ...args])).exitCode).toBe(2);
    await mustBeWhole(chain.backend, chain.all);
  });

  it('ends with 11 while the chain is being written', async () => {
    const chain = await fileChain(2);
    const writer = await chain.repository.openChainWriter('web1', IDENTITY);
    const locked = await cairn(chain.repo, ['forget', '--keep-last', '1', '--json']);
    await writer.close();
    expect(locked).toMatchObject({ exitCode: 11, messages: [{ code: 'REPO_LOCKED' }] });
    await mustBeWhole(chain.backend, chain.all);
  });
});
