/**
 * Several running machines out of one checkpoint, or none. In this order:
 *
 *     plan (nothing is touched) -> trusted? -> shared memory and disks -> every child started, none runs yet
 *     -> `each` before, one child after the other -> all run -> they are by themselves -> `each` after
 *
 * Up to where they are by themselves a failure ends all of them and removes what was made, also when this
 * process is killed. Afterwards they run, and what goes wrong is told beside the result.
 */

import { availableParallelism } from 'node:os';
import { resolve } from 'node:path';

import { CheckpointError, describeError, isCheckpointError } from '../../errors.js';
import type { Manifest } from '../../format/manifest.js';
import { defaultRuntimeDir, openRuntimeDir } from '../../host/runtime-dir.js';
import type { ForkedVm, VmForks } from '../../hypervisor/fork.js';
import type { HypervisorRegistry } from '../../hypervisor/registry.js';
import type { Repository } from '../../repository/repository.js';
import { refuseUntrusted, type TrustQuestion } from '../trust.js';
import { childNames } from './child-names.js';
import { checkForkable } from './forkable.js';

export type ForkPhase = 'before' | 'after';

/** Called for each child: `before` its vCPUs run for the first time, and `after` all run. */
export type ForEachFork = (phase: ForkPhase, child: ForkedVm, signal: AbortSignal) => Promise<void>;

export interface ForkOptions {
  readonly repository: Repository;
  readonly hypervisors: HypervisorRegistry;
  readonly manifest: Manifest;
  /** How many children, from 1 to `MOST_CHILDREN`. */
  readonly count: number;
  /** The children are called `PREFIX-0`, `PREFIX-1` and so on; default: the name of the chain. */
  readonly prefix?: string | undefined;
  /** In which each child gets a folder of its own name; default: the present one. */
  readonly folder?: string | undefined;
  /** Leave them paused; default: as the checkpoint found the VM. */
  readonly paused?: boolean | undefined;
  readonly each?: ForEachFork | undefined;
  /** Asked before a checkpoint that this host did not take is forked; absent: such a one is refused. */
  readonly trust?: TrustQuestion | undefined;
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface ForkResult {
  readonly checkpointId: string;
  readonly children: readonly ForkedVm[];
  /** Folders of what all children stand on, such as copies of disks. */
  readonly sharedFolders: readonly string[];
  readonly running: boolean;
  /** Milliseconds from the call to the end of each step. */
  readonly times: {
    readonly plannedMs: number;
    /** The memory and the disks that they share are there. */
    readonly filledMs: number;
    readonly startedMs: number;
    readonly runningMs: number;
  };
  /** What is not as it was although all went well, for the operator. */
  readonly notes: readonly string[];
  /** Children for which `each` failed in the phase `after`, in words. They run. */
  readonly failedAfter: readonly string[];
}

/** Each start keeps a processor busy, and waits for a part of the time. */
const STARTS_A_PROCESSOR = 2;

/**
 * @throws USAGE, FORK_REFUSED, DISK_NOT_COVERED, VM_UNSUPPORTED, RESTORE_UNTRUSTED, RESTORE_RIGHTS,
 *   RESTORE_REPLACEABLE with nothing touched; REPO_DAMAGED, RESTORE_FAILED, STORAGE_FULL, HOOK_FAILED,
 *   INTERRUPTED and what `each` throws with nothing left
 */
export async function forkCheckpoint(options: ForkOptions): Promise<ForkResult> {
  const { repository, hypervisors, manifest } = options;
  const startMs = performance.now();
  const elapsed = (): number => performance.now() - startMs;
  const names = childNames(options.prefix ?? manifest.vmName, options.count);
  checkForkable(manifest);
  const hypervisor = hypervisors.byName(manifest.hypervisor);
  if (hypervisor.planForks === undefined) {
    throw new CheckpointError('VM_UNSUPPORTED', `VMs of ${hypervisor.name} are not forked`, {
      hint: 'cairn restore --new-name NAME starts a copy beside the original, where its hypervisor can',
    });
  }
  // When one fails, the others need not be waited for.
  const given = new AbortController();
  const signal =
    options.signal === undefined ? given.signal : AbortSignal.any([options.signal, given.signal]);
  const forks = await hypervisor.planForks(repository.reader(manifest), {
    ...{ names, folder: resolve(options.folder ?? '.'), signal, onProgress: options.onProgress },
    origin: { repositoryId: repository.id, chain: manifest.chain, checkpointId: manifest.id },
    runtimeDir: await openRuntimeDir(defaultRuntimeDir()),
  });
  await refuseUntrusted(manifest, forks.plan, options.trust);
  const plannedMs = elapsed();
  const runs = !(options.paused ?? manifest.runState === 'paused');
  try {
    signal.throwIfAborted();
    await forks.fill();
    const filledMs = elapsed();
    const children = await startAll(forks, names.length, given, signal);
    const startedMs = elapsed();
    for (const child of children) await options.each?.('before', child, signal);
    signal.throwIfAborted();
    if (runs) await Promise.all(children.map(({ index }) => forks.run(index)));
    const runningMs = elapsed();
    await forks.settle();
    return {
      ...{ checkpointId: manifest.id, children, running: runs, notes: forks.notes },
      sharedFolders: forks.sharedFolders,
      times: { plannedMs, filledMs, startedMs, runningMs },
      failedAfter: await afterAll(children, options.each, options.signal ?? new AbortController().signal),
    };
  } catch (error) {
    const left = await forks.end();
    for (const what of left) process.emitWarning(`of a fork that failed something is left: ${what}`);
    throw options.signal?.aborted === true ? interrupted(options.signal, error) : error;
  }
}

/** All of them, or the error of the one that failed first, with no start under way any more. */
async function startAll(
  forks: VmForks,
  count: number,
  others: AbortController,
  signal: AbortSignal,
): Promise<readonly ForkedVm[]> {
  const children: ForkedVm[] = [];
  let next = 0;
  let failure: { readonly error: unknown } | undefined;
  const startSome = async (): Promise<void> => {
    while (next < count && failure === undefined) {
      const index = next++;
      try {
        signal.throwIfAborted();
        children[index] = await forks.start(index);
      } catch (error) {
        failure ??= { error };
        others.abort(error);
      }
    }
  };
  const lanes = Math.min(count, STARTS_A_PROCESSOR * availableParallelism());
  await Promise.all(Array.from({ length: lanes }, startSome));
  if (failure !== undefined) throw failure.error;
  return children;
}

async function afterAll(
  children: readonly ForkedVm[],
  each: ForEachFork | undefined,
  signal: AbortSignal,
): Promise<readonly string[]> {
  const failed: string[] = [];
  for (const child of children) {
    try {
      await each?.('after', child, signal);
    } catch (error) {
      failed.push(`${child.name}: ${describeError(error)}`);
    }
  }
  return failed;
}

function interrupted(signal: AbortSignal, cause: unknown): unknown {
  const reason: unknown = signal.reason;
  if (isCheckpointError(reason)) return reason;
  return new CheckpointError('INTERRUPTED', 'the fork was interrupted; nothing was left running', { cause });
}
