import { describe, expect, it } from '@jest/globals';

import { chainKey } from '../../src/format/chain-keys.js';
import { Repository } from '../../src/repository/repository.js';
import { sealJson } from '../../src/format/sealed-json.js';
import { MemoryBackend } from '../../src/storage/memory.js';
import { thisProcess } from '../../src/host/process-owner.js';
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

  async function lockOf(owner: object): Promise<Repository> {
    const backend = new MemoryBackend();
    const repository = await Repository.init(backend);
    await backend.save(
      'vms/web1/locks/aaaa',
      sealJson({ ...HEAD, time: 'then', ...thisProcess(), ...owner }),
    );
    return repository;
  }

  it.each([
    ['of a dead process', { pid: 2 ** 22 + 1 }],
    ['of an earlier process with the same id', { startTime: '1' }],
    ['of an earlier boot of this machine', { bootId: 'earlier', machineId: 'm', hostName: 'h' }],
  ])('%s is taken over', async (name, owner) => {
    const here = thisProcess();
    const earlier = name.includes('boot')
      ? { ...owner, machineId: here.machineId, hostName: here.hostName }
      : owner;
    const repository = await lockOf(earlier);
    if (name.includes('boot') && here.machineId === '') return;
    const chain = await repository.openChainWriter('web1', IDENTITY);
    expect(await repository.backend.list('vms/web1/locks/')).toHaveLength(1);
    await chain.close();
  });

  it.each([
    ['of another machine', { bootId: 'other', machineId: 'other' }],
    ['of another machine without an id', { bootId: 'other', machineId: '' }],
    ['of another container on this host', { pidNamespace: 'pid:[1]', pid: 2 ** 22 + 1 }],
  ])('%s is respected until it is unlocked', async (_, owner) => {
    const repository = await lockOf(owner);
    await expect(repository.openChainWriter('web1', IDENTITY)).rejects.toMatchObject({ code: 'REPO_LOCKED' });
    expect(await repository.unlock('web1')).toEqual(['vms/web1/locks/aaaa']);
    await (await repository.openChainWriter('web1', IDENTITY)).close();
  });

  it('that was removed under a writer keeps it from committing', async () => {
    const repository = await Repository.init(new MemoryBackend());
    const chain = await repository.openChainWriter('web1', IDENTITY);
    const vm = new ModelVm();
    vm.scribble(20);
    await repository.unlock('web1');
    await expect(vm.checkpoint(chain)).rejects.toMatchObject({ code: 'REPO_LOCKED' });
    expect((await repository.checkpoints()).manifests).toEqual([]);
    await chain.close();
  });
});
