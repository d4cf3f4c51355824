/** In which order a fork does things, and that it is all children or none. The hypervisor is a fake one. */

import { describe, expect, it } from '@jest/globals';

import { checkpointTree } from '../../src/cli/checkpoint-tree.js';
import type { Manifest } from '../../src/format/manifest.js';
import type { ForkedVm, VmForks } from '../../src/hypervisor/fork.js';
import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import { HypervisorRegistry } from '../../src/hypervisor/registry.js';
import type { Repository } from '../../src/repository/repository.js';
import { forkCheckpoint, type ForkOptions } from '../../src/restore/fork/fork.js';

const manifest = {
  ...{ id: '00aa', chain: 'web1', vmName: 'web1', hypervisor: 'fake', runState: 'running', deviceState: {} },
} as unknown as Manifest;

/** Does nothing, and writes down what it was asked for. */
class FakeForks implements VmForks {
  readonly plan = { commands: [], details: [], disks: [] };
  readonly notes: readonly string[] = [];
  readonly sharedFolders: readonly string[] = [];
  readonly did: string[] = [];
  readonly #fails: string;

  /** @param fails the step that fails, such as `start 2` */
  constructor(fails: string) {
    this.#fails = fails;
  }

  async #do(step: string): Promise<void> {
    this.did.push(step);
    await Promise.resolve();
    if (step === this.#fails) throw new Error(`${step} fails`);
  }

  fill(): Promise<void> {
    return this.#do('fill');
  }

  async start(index: number): Promise<ForkedVm> {
    await this.#do(`start ${index}`);
    return { index, name: `web1-${index}` } as ForkedVm;
  }

  run(index: number): Promise<void> {
    return this.#do(`run ${index}`);
  }

  settle(): Promise<void> {
    return this.#do('settle');
  }

  end(): Promise<readonly string[]> {
    this.did.push('end');
    return Promise.resolve([]);
  }
}

function forking(fails = '', more: Partial<ForkOptions> = {}) {
  const forks = new FakeForks(fails);
  const hypervisor = { name: 'fake', schemes: [], planForks: () => Promise.resolve(forks) };
  const result = forkCheckpoint({
    repository: { id: 'r', reader: () => ({}) } as unknown as Repository,
    hypervisors: new HypervisorRegistry([hypervisor as unknown as Hypervisor]),
    manifest,
    count: 2,
    each: (phase, { index }) => {
      forks.did.push(`${phase} ${index}`);
      return `${phase} ${index}` === fails ? Promise.reject(new Error('each fails')) : Promise.resolve();
    },
    ...more,
  });
  return { did: forks.did, result };
}

describe('a fork', () => {
  it('has no child run before all are there, and lets go of them when all run', async () => {
    const { did, result } = forking();
    expect(await result).toMatchObject({ checkpointId: '00aa', running: true, failedAfter: [] });
    expect(did).toEqual([
      ...[
        'fill',
        'start 0',
        'start 1',
        'before 0',
        'before 1',
        'run 0',
        'run 1',
        'settle',
        'after 0',
        'after 1',
      ],
    ]);
  });

  it('leaves them paused when that is asked for, or the checkpoint found the VM so', async () => {
    for (const more of [{ paused: true }, { manifest: { ...manifest, runState: 'paused' } }]) {
      const { did, result } = forking('', more);
      expect(await result).toMatchObject({ running: false });
      expect(did).not.toContain('run 0');
      expect(did).toContain('settle');
    }
  });

  it.each(['fill', 'start 0', 'start 1', 'before 1', 'run 1', 'settle'])(
    'is none when %s fails',
    async (step) => {
      const { did, result } = forking(step);
      await expect(result).rejects.toThrow('fails');
      expect(did.at(-1)).toBe('end');
      expect(did).not.toContain('after 0');
    },
  );

  it('starts no more children once one has failed', async () => {
    const { did, result } = forking('start 0', { count: 500 });
    await expect(result).rejects.toThrow('start 0 fails');
    expect(did.filter((step) => step.startsWith('start')).length).toBeLessThan(100);
    expect(did.at(-1)).toBe('end');
  });

  it('stands when a command fails after they run, and says so', async () => {
    const { did, result } = forking('after 0');
    expect(await result).toMatchObject({ failedAfter: ['web1-0: each fails'] });
    expect(did).not.toContain('end');
  });

  it('is none when it is called off', async () => {
    const controller = new AbortController();
    const each = (): Promise<void> => {
      controller.abort();
      return Promise.resolve();
    };
    const { did, result } = forking('', { each, signal: controller.signal });
    await expect(result).rejects.toMatchObject({ code: 'INTERRUPTED' });
    expect(did.at(-1)).toBe('end');
    expect(did).not.toContain('run 0');
  });

  it.each<[string, string, Partial<ForkOptions>]>([
    ['USAGE', 'no children', { count: 0 }],
    ['USAGE', 'a name with a slash', { prefix: 'a/b' }],
    ['FORK_REFUSED', 'frozen file systems', { manifest: { ...manifest, frozen: { fileSystemCount: 1 } } }],
    ['FORK_REFUSED', 'no device state', { manifest: { ...manifest, deviceState: null } }],
  ])('is refused (%s) for %s, with nothing done', async (code, _, more) => {
    const { did, result } = forking('', more);
    await expect(result).rejects.toMatchObject({ code });
    expect(did).toEqual([]);
  });
});

describe('the tree of checkpoints', () => {
  const one = (id: string, chain: string, from?: string): Manifest =>
    ({
      ...{ id, chain },
      ...(from === undefined ? {} : { forkedFrom: { repositoryId: 'r', chain: 'web', checkpointId: from } }),
    }) as unknown as Manifest;
  const drawn = (...manifests: readonly Manifest[]): readonly string[] =>
    checkpointTree(manifests).map(({ manifest: { id }, depth }) => `${'.'.repeat(depth)}${id}`);

  it('has the chains of forks below the checkpoint that they came from', () => {
    const all = [one('k', 'kid', 'b'), one('k2', 'kid', 'b'), one('g', 'grandchild', 'k'), one('a', 'web')];
    expect(drawn(...all, one('b', 'web'), one('c', 'web'))).toEqual(['a', 'b', '.k', '..g', '.k2', 'c']);
  });

  it('has forks of what is forgotten, and what goes round in a circle, too', () => {
    expect(drawn(one('k', 'kid', 'gone'))).toEqual(['k']);
    expect([...drawn(one('a', 'x', 'b'), one('b', 'y', 'a'))].sort()).toEqual(['.b', 'a']);
  });
});
