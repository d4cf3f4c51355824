/**
 * Two writers of one chain in one folder. At each step of the first one its lock is removed by force, and a second one takes the chain and does
 * something, from end to end. Whatever the first one makes of it, what is committed stays whole, and nothing is committed without the lock.
 */

import { cpSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, afterEach, beforeEach, describe, expect, it } from '@jest/globals';

import { isCheckpointError } from '../../src/errors.js';
import type { Manifest } from '../../src/format/manifest.js';
import { Repository } from '../../src/repository/repository.js';
import type { CallOptions, ObjectBody, SaveOptions } from '../../src/storage/backend.js';
import { FileBackend } from '../../src/storage/file.js';
import { forgetIds, mustBeWhole } from '../support/forget-model.js';
import { IDENTITY, ModelVm, type Expected } from '../unit/repository-model.js';

/** Calls `interfere` once, right before the step with this number; the look at the lock and what follows it are two steps. */
class SteppedBackend extends FileBackend {
  steps = 0;
  /** Name of the step that was interfered with. */
  step = '';
  at = 0;
  interfere: () => Promise<void> = () => Promise.resolve();

  override async save(key: string, body: ObjectBody, options: SaveOptions = {}): Promise<number> {
    await this.#step(`before save ${key}`);
    const sizeBytes = await super.save(key, body, this.#split(key, options));
    await this.#step(`after save ${key}`);
    return sizeBytes;
  }

  override async replace(key: string, body: ObjectBody, options: SaveOptions = {}): Promise<number> {
    await this.#step(`before replace ${key}`);
    return super.replace(key, body, this.#split(key, options));
  }

  override async remove(key: string, options?: CallOptions): Promise<void> {
    await this.#step(`remove ${key}`);
    await super.remove(key, options);
  }

  #split(key: string, { beforeVisible, ...more }: SaveOptions): SaveOptions {
    return {
      ...more,
      beforeVisible: async () => {
        await this.#step(`written ${key}`);
        await beforeVisible?.();
        await this.#step(`about to name ${key}`);
      },
    };
  }

  async #step(name: string): Promise<void> {
    if (++this.steps !== this.at) return;
    this.step = name;
    await this.interfere();
  }
}

let dir = '';
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'cairn-two-'));
});
afterEach(() => rmSync(dir, { recursive: true }));

interface Scene {
  readonly first: SteppedBackend;
  readonly repository: Repository;
  readonly expected: Expected[];
}

let prepared: { readonly path: string; readonly expected: readonly Expected[] } | undefined;

/** A chain of three checkpoints. */
async function prepare(): Promise<{ readonly path: string; readonly expected: readonly Expected[] }> {
  const path = mkdtempSync(join(tmpdir(), 'cairn-two-chain-'));
  const made = await Repository.init(new FileBackend(path));
  const vm = new ModelVm();
  const chain = await made.openChainWriter('web1', IDENTITY);
  const expected: Expected[] = [];
  for (let n = 0; n < 3; n++) {
    vm.scribble(40);
    expected.push(vm.snapshot(await vm.checkpoint(chain)));
  }
  await chain.close();
  return { path, expected };
}

afterAll(() => {
  if (prepared !== undefined) rmSync(prepared.path, { recursive: true });
});

/** A copy of that chain. */
async function scene(name: string): Promise<Scene> {
  prepared ??= await prepare();
  const path = join(dir, name);
  cpSync(prepared.path, path, { recursive: true });
  const first = new SteppedBackend(path);
  return { first, repository: await Repository.open(first), expected: [...prepared.expected] };
}

function goOnFrom(expected: readonly Expected[], seed: number): ModelVm {
  const vm = new ModelVm(undefined, seed);
  vm.memory = expected.at(-1)!.memory.slice();
  vm.committed = vm.memory.slice();
  vm.scribble(30);
  return vm;
}

/** The second writer, with a backend of its own. @returns what it has committed */
type Second = (repository: Repository, seen: readonly Expected[]) => Promise<readonly Expected[]>;

const takesCheckpoint: Second = async (repository, seen) => {
  const chain = await repository.openChainWriter('web1', IDENTITY);
  const vm = goOnFrom(seen, 99);
  const manifest = await vm.checkpoint(chain);
  expect(manifest.parentId).toBe(seen.at(-1)!.id);
  await chain.close();
  return [vm.snapshot(manifest)];
};

const prunes: Second = async (repository) => {
  await forgetIds(repository, [], { thinAbove: 0 });
  return [];
};

/** The numbers of what the first one has written are used again then. */
const prunesAndTakes: Second = async (repository, seen) => {
  await forgetIds(repository, [], { thinAbove: 0 });
  return takesCheckpoint(repository, seen);
};

/** Does the same with interference before step 1, 2 and so on, until there are no more steps. */
async function atEachStep(
  second: Second,
  work: (
    scene: Scene,
    done: { current: readonly Expected[]; bySecond: readonly Expected[] },
  ) => Promise<void>,
): Promise<ReadonlyMap<string, string>> {
  const outcomes = new Map<string, string>();
  for (let at = 1; ; at++) {
    const one = await scene(`${at}`);
    const done = { current: one.expected as readonly Expected[], bySecond: [] as readonly Expected[] };
    one.first.at = at;
    one.first.interfere = async () => {
      const repository = await Repository.open(new FileBackend(join(dir, `${at}`)));
      await repository.unlock('web1', { force: true });
      // What the first one has committed by now is the second one's parent.
      const { manifests } = await repository.checkpoints();
      const seen = done.current.filter(({ id }) => manifests.some((manifest) => manifest.id === id));
      if (seen.length < manifests.length) return;
      done.bySecond = await second(repository, seen);
    };
    let outcome = 'done';
    try {
      await work(one, done);
    } catch (error) {
      outcome = isCheckpointError(error) ? error.code : String(error);
    }
    const backend = new FileBackend(join(dir, `${at}`));
    const repository = await Repository.open(backend);
    const { manifests } = await repository.checkpoints();
    const { bySecond } = done;
    const all = [...done.current, ...bySecond];
    const left = manifests.map(({ id }) => all.find((each) => each.id === id)!);
    for (const { id } of bySecond) expect(manifests.map((manifest) => manifest.id)).toContain(id);
    // One checkpoint a number: nobody has gone on beside somebody else.
    expect(new Set(manifests.map(({ seq }) => seq)).size).toBe(manifests.length);
    mustBeOneRow(manifests);
    // The next one goes on.
    const next = await takesCheckpoint(repository, left);
    try {
      await mustBeWhole(backend, [...left, ...next]);
    } catch (error) {
      throw new Error(`${outcome} after ${at} ${one.first.step}`, { cause: error });
    }
    expect(
      readdirSync(join(dir, `${at}`, 'vms/web1/checkpoints')).filter((name) => name.startsWith('~')),
    ).toEqual([]);
    if (one.first.step === '') return outcomes;
    rmSync(join(dir, `${at}`), { recursive: true });
    outcomes.set(`${at} ${one.first.step.replace(/[0-9a-f]{16}/, 'ID')}`, outcome);
  }
}

function mustBeOneRow(manifests: readonly Manifest[]): void {
  for (const [i, manifest] of manifests.entries())
    if (i > 0 && manifest.kind !== 'base') expect(manifest.parentId).toBe(manifests[i - 1]!.id);
}

describe.each([
  ['takes a checkpoint', takesCheckpoint],
  ['removes what nobody needs', prunes],
  ['removes what nobody needs, and takes a checkpoint', prunesAndTakes],
] as const)('while a second writer, who has taken the lock by force, %s', (_, second) => {
  // Some dozens of steps, with files that are synced at each.
  const LIMIT_MS = 400_000;

  it(
    'a first one commits nothing, unless its checkpoint was there before',
    async () => {
      const outcomes = await atEachStep(second, async ({ repository, expected }, done) => {
        const chain = await repository.openChainWriter('web1', IDENTITY);
        try {
          // The second one may have come before it had the lock.
          const vm = goOnFrom([...expected, ...done.bySecond], 7);
          const manifest = await vm.checkpoint(chain, {
            packTargetBytes: 20_000,
            regroupFrom: chain.reader(),
          });
          done.current = [...expected, vm.snapshot(manifest)];
        } finally {
          await chain.close();
        }
      });
      const lost = [...outcomes].filter(([, outcome]) => outcome !== 'done');
      expect(new Set(lost.map(([, outcome]) => outcome))).toEqual(new Set(['REPO_LOCKED']));
      expect(outcomes.size).toBeGreaterThan(10);
      // Between its last look at the lock and the name of the manifest.
      const last = lost.map(([step]) => step).at(-1);
      expect(last).toContain('about to name vms/web1/checkpoints/');
    },
    LIMIT_MS,
  );

  it(
    'a first one that forgets takes nothing away that is needed',
    async () => {
      const outcomes = await atEachStep(second, async ({ repository, expected }, done) => {
        done.current = expected;
        await forgetIds(
          repository,
          expected.slice(0, 1).map(({ id }) => id),
          { thinAbove: 0 },
        );
      });
      expect([...outcomes.values()]).toContain('REPO_LOCKED');
    },
    LIMIT_MS,
  );
});
