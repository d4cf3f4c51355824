import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { ChainKeys, chainKey } from '../../src/format/chain-keys.js';
import { Repository } from '../../src/repository/repository.js';
import { sealJson } from '../../src/format/sealed-json.js';
import { FileBackend } from '../../src/storage/file.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { newTempName } from '../../src/storage/temp-files.js';
import { thisProcess } from '../../src/host/process-owner.js';
import { ChainLock } from '../../src/repository/locks/chain-lock.js';
import { IDENTITY, ModelVm } from './repository-model.js';

const HEAD = { format: 'cairn-repository', version: 1, requires: [] };

describe('a repository', () => {
  it('is made once and opened again', async () => {
    const backend = new MemoryBackend();
    const made = await Repository.init(backend);
    const opened = await Repository.open(backend);
    expect(opened.id).toBe(made.id);
    await expect(Repository.init(backend)).rejects.toMatchObject({ code: 'REPO_EXISTS' });
  });

  it('that is not there says how to make one', async () => {
    const open = Repository.open(new MemoryBackend());
    await expect(open).rejects.toMatchObject({
      code: 'REPO_NOT_FOUND',
      hint: expect.stringContaining('cairn init'),
    });
  });

  it('of a newer version, or with features unknown here, is not touched', async () => {
    for (const config of [
      { ...HEAD, version: 2 },
      { ...HEAD, requires: ['encryption'] },
    ]) {
      const backend = new MemoryBackend();
      await backend.save('config', sealJson({ ...config, id: 'x', created: 'y' }));
      await expect(Repository.open(backend)).rejects.toMatchObject({ code: 'REPO_VERSION' });
    }
  });

  it('without its config is damaged, not new, when there are checkpoints', async () => {
    const backend = new MemoryBackend();
    const repository = await Repository.init(backend);
    await (await repository.openChainWriter('web1', IDENTITY)).close();
    await backend.remove('config');
    await expect(Repository.open(backend)).rejects.toMatchObject({
      code: 'REPO_DAMAGED',
      detail: { key: 'config' },
    });
    await expect(Repository.init(backend)).rejects.toMatchObject({ code: 'REPO_EXISTS' });
  });

  it('keeps several chains, written at the same time', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const names = ['web1', 'web 2', 'größe/..'];
    const chains = await Promise.all(
      names.map((name) => repository.openChainWriter(name, { ...IDENTITY, name, uuid: name })),
    );
    for (const chain of chains) await new ModelVm().checkpoint(chain);
    const infos = await repository.chains();
    expect(infos.map(({ vm }) => vm?.name).sort()).toEqual([...names].sort());
    expect(infos.every(({ isLocked, checkpointCount }) => isLocked && checkpointCount === 1)).toBe(true);
    for (const chain of chains) await chain.close();
    expect((await repository.chains()).some(({ isLocked }) => isLocked)).toBe(false);
    expect((await repository.checkpoints('web 2')).manifests).toHaveLength(1);
    expect((await repository.checkpoints()).manifests).toHaveLength(3);
  });
});

describe('the name of a chain in keys', () => {
  it.each([
    ['web1', 'web1'],
    ['Web-1.example', 'Web-1.example'],
    ['.hidden', '_2ehidden'],
    ['..', '_2e.'],
    ['a_b', 'a_5fb'],
    ['a/b c', 'a_2fb_20c'],
    ['ö', '_c3_b6'],
  ])('%s is %s', (name, key) => expect(chainKey(name)).toBe(key));

  it('is short enough for a file, and still one of its own', () => {
    const long = chainKey('x'.repeat(300));
    expect(long.length).toBeLessThanOrEqual(200);
    expect(long).not.toBe(chainKey('x'.repeat(301)));
    expect(() => chainKey('')).toThrow(expect.objectContaining({ code: 'USAGE' }));
  });
});

describe('a checkpoint is found', () => {
  it('by the start of its id, or as the latest of its chain', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    const ids: string[] = [];
    for (let n = 0; n < 3; n++) ids.push((await vm.checkpoint(chain)).id);
    for (const id of ids) {
      expect((await repository.find(id)).id).toBe(id);
      expect((await repository.find(id.slice(0, 6))).id).toBe(id);
    }
    expect((await repository.find('latest')).id).toBe(ids[2]);
    expect((await repository.checkpoints()).manifests.map(({ id }) => id)).toEqual(ids);
    for (const wanted of ['', ids[0]!.slice(0, 3), 'xyzw', '00000000000000000', '../config']) {
      await expect(repository.find(wanted)).rejects.toMatchObject({ code: 'CHECKPOINT_NOT_FOUND' });
    }
    await expect(repository.find('latest', 'other')).rejects.toMatchObject({ code: 'CHECKPOINT_NOT_FOUND' });
  });

  it('not when there are several', async () => {
    const repository = await Repository.init(new MemoryBackend());
    for (const name of ['a', 'b']) {
      const chain = await repository.openChainWriter(name, IDENTITY);
      await new ModelVm().checkpoint(chain);
      await chain.close();
    }
    await expect(repository.find('latest')).rejects.toMatchObject({ code: 'CHECKPOINT_AMBIGUOUS' });
    expect((await repository.find('latest', 'a')).vmName).toBe('a');
  });

  it('although another manifest is damaged', async () => {
    const backend = new MemoryBackend();
    const repository = await Repository.init(backend);
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    const first = await vm.checkpoint(chain);
    await vm.checkpoint(chain);
    await chain.close();
    const [, second] = await backend.list('vms/web1/checkpoints/');
    await backend.remove(second!.key);
    await backend.save(second!.key, new Uint8Array(300));
    const list = await repository.checkpoints();
    expect(list.manifests.map(({ id }) => id)).toEqual([first.id]);
    expect(list.damaged).toEqual([{ key: second!.key, message: expect.stringContaining(second!.key) }]);
    // The latest one is asked for: an older one in its place would be a lie.
    await expect(repository.find('latest')).rejects.toMatchObject({
      code: 'REPO_DAMAGED',
      detail: { key: second!.key },
    });
    const writer = await repository.openChainWriter('web1', IDENTITY);
    expect(writer.latest?.id).toBe(first.id);
    expect(writer.damaged).toHaveLength(1);
    expect((await vm.checkpoint(writer)).seq).toBe(3);
  });
});

describe('a chain belongs to one VM', () => {
  const withoutUuid = { ...IDENTITY, uuid: '' };

  it.each([
    ['another UUID', IDENTITY, { ...IDENTITY, uuid: 'other' }],
    ['another hypervisor', IDENTITY, { ...IDENTITY, hypervisor: 'xen' }],
    ['a UUID where there was none', withoutUuid, IDENTITY],
    ['another machine type, and no UUID', withoutUuid, { ...withoutUuid, machineType: 'q35' }],
  ])('and refuses one with %s', async (_, first, second) => {
    const repository = await Repository.init(new MemoryBackend());
    await (await repository.openChainWriter('web1', first)).close();
    const open = repository.openChainWriter('web1', second);
    await expect(open).rejects.toMatchObject({
      code: 'CHAIN_WRONG_VM',
      hint: expect.stringContaining('--name'),
    });
    // The lock is free again.
    await (await repository.openChainWriter('web1', first)).close();
  });

  it('and takes it whatever its name, instance or machine type when the UUID is the same', async () => {
    const repository = await Repository.init(new MemoryBackend());
    await (await repository.openChainWriter('web1', IDENTITY)).close();
    const same = { ...IDENTITY, name: 'renamed', instance: 'later', machineType: 'pc-i440fx-8.0' };
    await (await repository.openChainWriter('web1', same)).close();
  });
});

describe('the lock of a chain', () => {
  it('keeps a second writer out, and says who has it', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const first = await repository.openChainWriter('web1', IDENTITY);
    await expect(repository.openChainWriter('web1', IDENTITY)).rejects.toMatchObject({
      code: 'REPO_LOCKED',
      message: expect.stringContaining(`process ${process.pid}`),
      hint: expect.stringContaining('cairn unlock'),
    });
    await first.close();
    await (await repository.openChainWriter('web1', IDENTITY)).close();
  });

  it('is never held by two of many that come at once', async () => {
    const backend = new MemoryBackend();
    const repository = await Repository.init(backend);
    for (let round = 0; round < 5; round++) {
      const opened = await Promise.allSettled(
        Array.from({ length: 6 }, () => repository.openChainWriter('web1', IDENTITY)),
      );
      const winners = opened.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
      expect(winners.length).toBeLessThanOrEqual(1);
      expect(await backend.list('vms/web1/locks/')).toHaveLength(winners.length);
      for (const winner of winners) await winner.close();
    }
  });

  const KEY = 'vms/web1/locks/aaaaaaaaaaaaaaaa';
  const BEAT_MS = 40;

  async function lockOf(owner: object): Promise<Repository> {
    const backend = new MemoryBackend();
    const repository = await Repository.init(backend);
    await backend.save(KEY, sealJson({ ...HEAD, time: 'then', ...thisProcess(), ...owner }));
    return repository;
  }

  it.each([
    ['of a dead process', { pid: 2 ** 22 + 1 }],
    ['of an earlier process with the same id', { startTime: '1' }],
  ])('%s is taken over', async (_, owner) => {
    const repository = await lockOf(owner);
    const chain = await repository.openChainWriter('web1', IDENTITY);
    expect(await repository.backend.list('vms/web1/locks/')).toHaveLength(1);
    await chain.close();
  });

  const unseen = [
    ['of another boot of a machine of this name', { bootId: 'earlier', machineId: 'm', hostName: 'h' }],
    ['of another container on this host', { pidNamespace: 'pid:[1]', pid: 2 ** 22 + 1 }],
  ] as const;
  const named = (owner: object): object =>
    'machineId' in owner
      ? { ...owner, machineId: thisProcess().machineId, hostName: thisProcess().hostName }
      : owner;

  it.each(unseen)('%s is taken over when it gives no sign of life', async (_, owner) => {
    if (thisProcess().machineId === '' && 'machineId' in owner) return;
    const repository = await lockOf({ ...named(owner), beatMs: BEAT_MS });
    const said: string[] = [];
    const chain = await repository.openChainWriter('web1', IDENTITY, { onWait: (text) => said.push(text) });
    expect(said).toEqual([expect.stringContaining('signs of life')]);
    expect(await repository.backend.list('vms/web1/locks/')).toHaveLength(1);
    await chain.close();
  });

  it.each(unseen)('%s is respected while it beats, and by unlock as well', async (_, owner) => {
    if (thisProcess().machineId === '' && 'machineId' in owner) return;
    const repository = await lockOf({ ...named(owner), beatMs: BEAT_MS });
    const { backend } = repository;
    const keys = new ChainKeys('web1');
    let count = 0;
    const beating = setInterval(() => {
      void backend.save(keys.beat('aaaaaaaaaaaaaaaa', ++count), new Uint8Array(0));
    }, BEAT_MS / 4);
    try {
      await expect(repository.openChainWriter('web1', IDENTITY)).rejects.toMatchObject({
        code: 'REPO_LOCKED',
        detail: { key: KEY },
      });
      await expect(repository.unlock('web1')).rejects.toMatchObject({
        code: 'REPO_LOCKED',
        message: expect.stringContaining('is running'),
      });
    } finally {
      clearInterval(beating);
    }
    expect((await backend.list(keys.locks)).map(({ key }) => key)).toEqual([KEY]);
    expect(await repository.unlock('web1', { force: true })).toEqual([KEY]);
    expect(await backend.list(keys.beats)).toEqual([]);
    await (await repository.openChainWriter('web1', IDENTITY)).close();
  });

  it.each(unseen)(
    '%s is respected when the storage lets nobody write for longer than that',
    async (_, owner) => {
      if (thisProcess().machineId === '' && 'machineId' in owner) return;
      const { backend } = await lockOf({ ...named(owner), beatMs: BEAT_MS });
      const keys = new ChainKeys('web1');
      const list = backend.list.bind(backend);
      let asked = 0;
      backend.list = async (prefix, options) => {
        if (prefix === keys.beatsOf('aaaaaaaaaaaaaaaa') && ++asked === 2) {
          await sleep(BEAT_MS * 10);
          // The owner's client is back a little later than ours.
          setTimeout(
            () => void backend.save(keys.beat('aaaaaaaaaaaaaaaa', 1), new Uint8Array(0)),
            BEAT_MS * 2,
          );
        }
        return list(prefix, options);
      };
      await expect(ChainLock.take(backend, keys, { beatMs: BEAT_MS })).rejects.toMatchObject({
        code: 'REPO_LOCKED',
        detail: { key: KEY },
      });
    },
  );

  it.each([
    ...unseen,
    ['of another machine', { bootId: 'other', machineId: 'other' }],
    ['of another machine without an id', { bootId: 'other', machineId: '' }],
  ])('%s that does not beat is respected until it is unlocked by force', async (_, owner) => {
    const repository = await lockOf(named(owner));
    await expect(repository.openChainWriter('web1', IDENTITY)).rejects.toMatchObject({ code: 'REPO_LOCKED' });
    await expect(repository.unlock('web1')).rejects.toMatchObject({
      code: 'REPO_LOCKED',
      hint: expect.stringContaining('--force'),
    });
    expect(await repository.unlock('web1', { force: true })).toEqual([KEY]);
    await (await repository.openChainWriter('web1', IDENTITY)).close();
  });

  it('of another machine is respected by a writer even if silent, and goes with an unlock then', async () => {
    const repository = await lockOf({ bootId: 'other', machineId: 'other', beatMs: BEAT_MS });
    await expect(repository.openChainWriter('web1', IDENTITY)).rejects.toMatchObject({ code: 'REPO_LOCKED' });
    expect(await repository.unlock('web1')).toEqual([KEY]);
  });

  it('of a living process is not unlocked without force, and it is said whose it is', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const { hostName, pid } = thisProcess();
    await expect(repository.unlock('web1')).rejects.toMatchObject({
      code: 'REPO_LOCKED',
      message: expect.stringMatching(`process ${pid} on ${hostName} \\(.*node.*\\), since 2`),
    });
    expect(await repository.backend.list('vms/web1/locks/')).toHaveLength(1);
    await chain.close();
  });

  it('lives on while its owner works, and leaves nothing behind', async () => {
    const { backend } = await Repository.init(new MemoryBackend());
    const keys = new ChainKeys('web1');
    const lock = await ChainLock.take(backend, keys, { beatMs: 20 });
    const seen = new Set<string>();
    while (seen.size < 3) {
      for (const { key } of await backend.list(keys.beats)) seen.add(key);
      await sleep(5);
    }
    expect(await lock.isHeld({})).toBe(true);
    await lock.release();
    expect(await backend.list('vms/')).toEqual([]);
  });

  it('is not brought back by a beat once somebody has removed it', async () => {
    const { backend } = await Repository.init(new MemoryBackend());
    const keys = new ChainKeys('web1');
    const lock = await ChainLock.take(backend, keys, { beatMs: 20 });
    await backend.remove(lock.key);
    await sleep(100);
    expect(await backend.list(keys.locks)).toEqual([]);
    expect(await lock.isHeld({})).toBe(false);
    await lock.release();
  });

  it('is lost to a copy of this machine that goes on under it, and left to it', async () => {
    const { backend } = await Repository.init(new MemoryBackend());
    const keys = new ChainKeys('web1');
    const lock = await ChainLock.take(backend, keys, { beatMs: 60_000 });
    await backend.save(keys.beat(lock.key.slice(-16), 7), new Uint8Array(0));
    await expect(lock.mustBeHeld('web1', {})).rejects.toMatchObject({
      code: 'REPO_LOCKED',
      message: expect.stringContaining('copy of this machine'),
    });
    await lock.release();
    expect((await backend.list(keys.locks)).map(({ key }) => key)).toEqual([lock.key]);
  });

  it('that was removed under a writer keeps it from committing', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(20);
    await repository.unlock('web1', { force: true });
    await expect(vm.checkpoint(chain)).rejects.toMatchObject({ code: 'REPO_LOCKED' });
    expect((await repository.checkpoints()).manifests).toEqual([]);
    await chain.close();
  });
});

describe('a folder for a new repository', () => {
  let dir = '';
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'cairn-init-'));
  });
  afterEach(() => rmSync(dir, { recursive: true }));

  const init = (): Promise<Repository> => Repository.init(new FileBackend(dir));

  it('may be empty, or have what a file system puts at its top', async () => {
    mkdirSync(join(dir, 'lost+found'));
    mkdirSync(join(dir, '.snapshot'));
    await init();
    expect(readdirSync(dir).sort()).toEqual(['.snapshot', 'config', 'lost+found']);
  });

  it('may not exist yet', async () => {
    await Repository.init(new FileBackend(join(dir, 'a', 'b')));
    expect(readdirSync(join(dir, 'a', 'b'))).toEqual(['config']);
  });

  it('may have what an init left that was cut off', async () => {
    writeFileSync(join(dir, newTempName()), 'half');
    const { id } = await init();
    expect((await Repository.open(new FileBackend(dir))).id).toBe(id);
  });

  it.each([
    ['a file', () => writeFileSync(join(dir, 'thesis.odt'), 'text'), 'thesis.odt'],
    ['a hidden file', () => writeFileSync(join(dir, '.bashrc'), 'text'), '.bashrc'],
    ['a backup of an editor', () => writeFileSync(join(dir, '~draft'), 'text'), '~draft'],
    ['a folder', () => mkdirSync(join(dir, 'photos')), 'photos'],
    ['a folder "vms" of somebody', () => mkdirSync(join(dir, 'vms')), 'vms'],
    ['a file "lost+found"', () => writeFileSync(join(dir, 'lost+found'), ''), 'lost+found'],
    ['a name with control characters', () => writeFileSync(join(dir, 'a\u001b[2Jb'), ''), 'a\\u001b[2Jb'],
  ])('that holds %s is refused, and left as it is', async (_, make, name) => {
    make();
    const before = readdirSync(dir);
    await expect(init()).rejects.toMatchObject({
      code: 'REPO_NOT_EMPTY',
      message: expect.stringContaining(name),
    });
    expect(readdirSync(dir)).toEqual(before);
  });

  it('that holds a file "config" of others is refused', async () => {
    writeFileSync(join(dir, 'config'), '[core]\n');
    mkdirSync(join(dir, 'refs'));
    await expect(init()).rejects.toMatchObject({ code: 'REPO_NOT_EMPTY', detail: { names: ['refs'] } });
  });

  it('with a repository in it is refused as one, whatever lies beside that', async () => {
    await init();
    writeFileSync(join(dir, 'notes'), '');
    await expect(init()).rejects.toMatchObject({ code: 'REPO_EXISTS' });
  });

  it('with many things of others has some of them named', async () => {
    for (let n = 0; n < 20; n++) writeFileSync(join(dir, `file${10 + n}`), '');
    await expect(init()).rejects.toMatchObject({ message: expect.stringContaining('and 15 more') });
  });
});
