/**
 * Forgets checkpoints of a chain and removes what the others do not need (docs/format.md, forgetting). The
 * manifests go first: with its manifest a checkpoint is gone, and what it leaves behind are orphans.
 */

import { isCheckpointError } from '../../errors.js';
import type { CallOptions } from '../../storage/backend.js';
import type { Calendar } from './calendar.js';
import { idOfKey } from '../../format/chain-keys.js';
import { ChainLock } from '../chain-lock.js';
import type { DamagedObject } from '../../records/damage.js';
import { select, type KeepPolicy, type KeptCheckpoint } from './keep-policy.js';
import { loadManifest, loadManifests } from '../read/manifest-store.js';
import { manifestKey, type Manifest } from '../../format/manifest.js';
import { sweep } from './sweep.js';
import { planSweep, type SweepPlan, type SweepSource } from './sweep-plan.js';

/**
 * Which checkpoints of a chain go: those that a policy does not keep, or those whose manifests have these
 * keys. Without any, only what a crash left goes.
 */
export type ForgetChoice =
  | { readonly policy: KeepPolicy; readonly calendar: Calendar }
  | { readonly manifestKeys: ReadonlySet<string> };

export interface ForgetOptions extends CallOptions {
  readonly dryRun?: boolean;
  /** See `SweepPlanOptions`. */
  readonly thinAbove?: number;
  /** Called when the manifests are gone, before anything else is removed. */
  readonly onForgotten?: ((removed: readonly ForgottenCheckpoint[]) => Promise<void>) | undefined;
  /** Bytes of packs that were looked at. */
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
}

export interface ForgottenCheckpoint {
  readonly id: string;
  /** Null when it was damaged. */
  readonly manifest: Manifest | null;
}

export interface ForgetResult {
  readonly chain: string;
  readonly kept: readonly KeptCheckpoint[];
  readonly removed: readonly ForgottenCheckpoint[];
  /** Bytes that are free now; an estimate in a dry run. */
  readonly freedBytes: number;
  /** Count of packs and segments that were removed. */
  readonly removedObjects: number;
  readonly thinnedPacks: number;
  /** Damage because of which less was freed than could have been; what stays is as it was. */
  readonly problems: readonly string[];
}

/**
 * Takes the lock of the chain, except for a dry run, which changes nothing.
 * @throws REPO_LOCKED naming the owner, USAGE for a policy that keeps nothing, REPO_VERSION for a checkpoint
 *   of a newer version, what the backend throws. What is done until then is done, and the next call goes on.
 */
export async function forget(
  source: SweepSource,
  choice: ForgetChoice,
  options: ForgetOptions = {},
): Promise<ForgetResult> {
  const { backend, keys } = source;
  const call = { signal: options.signal };
  if (options.dryRun === true) {
    const plan = await planForget(source, choice, options);
    const removedObjects = plan.sweep.packs.filter(({ thinTo }) => thinTo === undefined).length;
    return {
      ...resultOf(keys.chain, plan),
      freedBytes: plan.manifestBytes + plan.sweep.freedBytes,
      removedObjects: removedObjects + plan.sweep.segments.length,
      thinnedPacks: plan.sweep.packs.length - removedObjects,
    };
  }
  const lock = await ChainLock.take(backend, keys, call);
  try {
    return await forgetHeld(source, choice, () => lock.mustBeHeld(keys.chain, call), options);
  } finally {
    await lock.release();
  }
}

/**
 * Does what `forget` does, for a caller that holds the lock.
 * @param checkLock throws REPO_LOCKED when it is not held any more
 */
export async function forgetHeld(
  source: SweepSource,
  choice: ForgetChoice,
  checkLock: () => Promise<void>,
  options: Omit<ForgetOptions, 'dryRun'>,
): Promise<ForgetResult> {
  const { backend, keys } = source;
  const call = { signal: options.signal };
  const plan = await planForget(source, choice, options);
  for (const key of plan.manifestKeys) {
    await checkLock();
    await backend.remove(key, call);
  }
  await options.onForgotten?.(plan.removed);
  const swept = await sweep(source, plan.sweep, { ...call, checkLock });
  return {
    ...resultOf(keys.chain, plan),
    ...swept,
    freedBytes: plan.manifestBytes + swept.freedBytes,
    problems: [...plan.sweep.problems, ...swept.problems],
  };
}

interface ForgetPlan {
  readonly kept: readonly KeptCheckpoint[];
  readonly removed: readonly ForgottenCheckpoint[];
  /** Keys of the manifests to be removed, oldest first. */
  readonly manifestKeys: readonly string[];
  readonly manifestBytes: number;
  readonly sweep: SweepPlan;
}

function resultOf(
  chain: string,
  { kept, removed, sweep: { problems } }: ForgetPlan,
): Pick<ForgetResult, 'chain' | 'kept' | 'removed' | 'problems'> {
  return { chain, kept, removed, problems };
}

async function planForget(
  source: SweepSource,
  choice: ForgetChoice,
  options: ForgetOptions,
): Promise<ForgetPlan> {
  const { backend, keys } = source;
  const objects = await backend.list(keys.checkpoints, options);
  const { manifests, damaged } = await loadManifests(backend, keys, options);
  const { kept, removed, removedDamaged } =
    'policy' in choice
      ? { ...select(manifests, choice.policy, choice.calendar), removedDamaged: [] }
      : await selectNamed(source, choice.manifestKeys, manifests, damaged, options);
  const forgotten: ForgottenCheckpoint[] = [
    ...removed.map((manifest) => ({ id: manifest.id, manifest })),
    ...removedDamaged.map(({ key }) => ({ id: idOfKey(key) ?? '', manifest: null })),
  ];
  const leaving = new Set([...removed.map(manifestKey), ...removedDamaged.map(({ key }) => key)]);
  const plan = await planSweep(
    source,
    kept.map(({ manifest }) => manifest),
    damaged.filter(({ key }) => !leaving.has(key)),
    options,
  );
  const manifestObjects = objects.filter(({ key }) => leaving.has(key));
  return {
    kept,
    removed: forgotten,
    manifestKeys: manifestObjects.map(({ key }) => key),
    manifestBytes: manifestObjects.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    sweep: plan,
  };
}

async function selectNamed(
  { backend, keys }: SweepSource,
  named: ReadonlySet<string>,
  manifests: readonly Manifest[],
  damaged: readonly DamagedObject[],
  options: ForgetOptions,
): Promise<{
  readonly kept: readonly KeptCheckpoint[];
  readonly removed: readonly Manifest[];
  readonly removedDamaged: readonly DamagedObject[];
}> {
  const removedDamaged = damaged.filter(({ key }) => named.has(key));
  for (const { key } of removedDamaged) {
    // A manifest that a newer version wrote is whole, and only that version knows what else it needs.
    const object = await backend.stat(key, options);
    await loadManifest(backend, keys, object, options).catch((error: unknown) => {
      if (!isCheckpointError(error, 'REPO_DAMAGED')) throw error;
    });
  }
  const isNamed = (manifest: Manifest): boolean => named.has(manifestKey(manifest));
  return {
    kept: manifests
      .filter((manifest) => !isNamed(manifest))
      .map((manifest) => ({ manifest, reasons: ['not named'] })),
    removed: manifests.filter(isNamed),
    removedDamaged,
  };
}
