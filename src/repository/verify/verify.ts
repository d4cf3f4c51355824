/**
 * Reads everything back: every object, every checksum, every record down to its page (docs/format.md,
 * verification). Goes on after a problem, so that one run names all that is damaged.
 */

import type { StoredObject } from '../../storage/backend.js';
import { CONFIG_KEY, ChainKeys, chainKey, chainOfKey } from '../../format/chain-keys.js';
import { asDamagedObject, type DamagedObject } from '../../records/damage.js';
import { Repository } from '../repository.js';
import { ChainVerifier } from './verify-chain.js';

export interface VerifyOptions {
  /** Name of the VM or of the folder; default: all chains. */
  readonly chain?: string;
  readonly signal?: AbortSignal | undefined;
  /** Bytes of stored objects, done and in total. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  /** Each problem once, as it is found. */
  readonly onProblem?: (problem: DamagedObject) => void;
}

export interface VerifyResult {
  readonly checkpoints: number;
  readonly records: number;
  readonly bytes: number;
  readonly problems: readonly DamagedObject[];
  /**
   * Checkpoints that cannot be restored because of them; those whose manifest is unreadable have no id to
   * give.
   */
  readonly affectedCheckpoints: readonly string[];
  /** Objects that belong to no checkpoint: what a crash left, or a checkpoint being written. Harmless. */
  readonly orphans: readonly string[];
}

/** @throws what is not about damage: INTERRUPTED, failures of the backend */
export async function verify(repository: Repository, options: VerifyOptions = {}): Promise<VerifyResult> {
  const { backend } = repository;
  const { signal } = options;
  const problems: DamagedObject[] = [];
  const seen = new Set<string>();
  const onProblem = (problem: DamagedObject): void => {
    // A damaged base is met again with each record that builds on it.
    if (seen.has(problem.message)) return;
    seen.add(problem.message);
    problems.push(problem);
    options.onProblem?.(problem);
  };
  const objects = await backend.list('', { signal });
  const chains = byChain(objects, options.chain);
  const total = [...chains.values()].flat().reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  let done = 0;
  const onBytes = (sizeBytes: number): void => {
    done += sizeBytes;
    options.onProgress?.(Math.min(Math.round(done), total), total);
  };
  try {
    await Repository.open(backend, { signal });
  } catch (error) {
    onProblem(asDamagedObject(CONFIG_KEY, error));
  }
  const orphans = objects
    .filter(({ key }) => key !== CONFIG_KEY && chainOfKey(key) === undefined)
    .map(({ key }) => key);
  const affectedCheckpoints: string[] = [];
  let checkpoints = 0;
  let records = 0;
  for (const [chain, chainObjects] of chains) {
    const verifier = new ChainVerifier({
      backend,
      repositoryId: repository.id,
      keys: new ChainKeys(chain),
      objects: chainObjects,
      signal,
      onProblem,
      onBytes,
    });
    const result = await verifier.run();
    checkpoints += result.checkpoints;
    records += result.records;
    orphans.push(...result.orphans);
    affectedCheckpoints.push(...result.affected);
  }
  options.onProgress?.(total, total);
  return { checkpoints, records, bytes: total, problems, affectedCheckpoints, orphans };
}

function byChain(objects: readonly StoredObject[], wanted: string | undefined): Map<string, StoredObject[]> {
  const chains = new Map<string, StoredObject[]>();
  for (const object of objects) {
    const chain = chainOfKey(object.key);
    if (chain === undefined || !(wanted === undefined || chain === wanted || chain === chainKey(wanted)))
      continue;
    chains.set(chain, [...(chains.get(chain) ?? []), object]);
  }
  return chains;
}
