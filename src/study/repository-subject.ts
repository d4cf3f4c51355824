/**
 * A chain of a repository: each increment is an epoch, its pages are those that the checkpoint recorded anew.
 */

import { CheckpointError } from '../errors.js';
import { sameLayout } from '../hypervisor/memory-layout.js';
import type { CheckpointReader } from '../repository/read/checkpoint-reader.js';
import type { Manifest } from '../format/manifest.js';
import type { Repository } from '../repository/repository.js';
import { packOfRef } from '../format/record-ref.js';
import { PAGE_SIZE_BYTES } from '../types.js';
import { isSampled } from './sampling.js';
import type { ObservedEpoch, Subject } from './subject.js';

export interface RepositoryOptions {
  /** So many of the newest increments are looked at. */
  readonly epochs: number;
  /** The contents of at most about so many pages an increment are read. */
  readonly maxContentPages: number;
  readonly signal?: AbortSignal | undefined;
}

/**
 * @throws REPO_NOT_FOUND for a chain that is not there, USAGE for one with no increment; REPO_DAMAGED while
 *   it is read
 */
export async function openRepositorySubject(
  repository: Repository,
  chain: string | undefined,
  options: RepositoryOptions,
): Promise<Subject> {
  const { manifests } = await repository.checkpoints(chain);
  const name = chain ?? manifests.at(-1)?.vmName ?? '';
  const own = manifests.filter(({ vmName }) => vmName === name);
  const pairs = own.flatMap((child) => {
    const parent = own.find(({ id }) => id === child.parentId);
    return parent === undefined || !sameLayout(parent.layout, child.layout) ? [] : [{ parent, child }];
  });
  const newest = pairs.slice(-options.epochs);
  const last = newest.at(-1);
  if (last === undefined) {
    throw new CheckpointError('USAGE', `the chain ${name} has no two checkpoints that could be compared`, {
      hint: 'take some more checkpoints, or analyze the running VM',
    });
  }
  return {
    kind: 'repository',
    name,
    memoryBytes: last.child.layout.sizeBytes,
    epochMs: medianOf(newest.map(({ parent, child }) => distanceMs(parent, child))),
    pauseMs: medianOf(newest.map(({ child }) => Number(child.stats.pauseMs))),
    async *epochs(): AsyncGenerator<ObservedEpoch> {
      for (const { parent, child } of newest) {
        options.signal?.throwIfAborted();
        yield await epochOf(repository, parent, child, options);
      }
    },
  };
}

async function epochOf(
  repository: Repository,
  parent: Manifest,
  child: Manifest,
  { maxContentPages }: RepositoryOptions,
): Promise<ObservedEpoch> {
  const [old, young] = [repository.reader(parent), repository.reader(child)];
  const [before, after] = [await repository.loadMap(parent), await repository.loadMap(child)];
  const changed: number[] = [];
  after.visitDiffering(before, (page) => {
    // A page that was only regrouped has a new reference and did not change.
    if (packOfRef(after.refOf(page)) !== child.regrouped?.pack) changed.push(page);
  });
  let oneIn = 1;
  while (changed.filter((page) => isSampled(page, oneIn)).length > maxContentPages) oneIn *= 2;
  const contentPages = Uint32Array.from(changed.filter((page) => isSampled(page, oneIn)));
  return {
    runMs: distanceMs(parent, child),
    pages: Uint32Array.from(changed),
    contentPages,
    before: await contentsOf(old, contentPages),
    after: await contentsOf(young, contentPages),
  };
}

async function contentsOf(reader: CheckpointReader, pages: Uint32Array): Promise<Uint8Array> {
  const bytes = new Uint8Array(pages.length * PAGE_SIZE_BYTES);
  await reader.readPages(pages, bytes);
  return bytes;
}

function distanceMs(parent: Manifest, child: Manifest): number {
  return Math.max(1, Date.parse(child.time) - Date.parse(parent.time));
}

function medianOf(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)]!;
}
