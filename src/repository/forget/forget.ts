/**
 * Forgets checkpoints of a chain and removes what the others do not need (docs/format.md, forgetting). The
 * manifests go first: with its manifest a checkpoint is gone, and what it leaves behind are orphans.
 */

import { isCheckpointError } from '../../errors.js';
import type { CallOptions, StorageBackend, StoredObject } from '../../storage/backend.js';
import { unlessEnded } from '../../storage/interrupted.js';
import type { Calendar } from './calendar.js';
import { idOfKey } from '../../format/chain-keys.js';
import { removeUnfinished } from '../locks/unfinished.js';
import { keepReserve, takeLock } from '../reserve.js';
import type { DamagedObject } from '../../records/damage.js';
import { misdatedError } from './misdated.js';
import { select, type KeepPolicy, type KeptCheckpoint, type Selection } from './keep-policy.js';
import { loadManifest, loadManifests } from '../read/manifest-store.js';
import { manifestKey, type Manifest } from '../../format/manifest.js';
import { sweepToTheEnd } from './sweep-rounds.js';
import { planSweep, type SweepPlan, type SweepSource } from './sweep-plan.js';

/**
 * Which checkpoints of a chain go: those that a policy does not keep, or those whose manifests have these
 * keys. Without any, only what a crash left goes.
 */
export type ForgetChoice =
  | {
      readonly policy: KeepPolicy;
      readonly calendar: Calendar;
      /** Clock that says which checkpoints are dated later than now; default: this host's. */
      readonly nowMs?: number | undefined;
      /** Go on although there are some: they are kept, and the policy counts from the newest of the others. */
      readonly keepMisdated?: boolean | undefined;
    }
  | { readonly manifestKeys: ReadonlySet<string> };

export interface ForgetOptions extends CallOptions {
  readonly dryRun?: boolean;
  /** See `SweepPlanOptions`. */
  readonly thinAbove?: number;
  /** Looks for what is not needed only when checkpoints go: to look takes reading much of the chain. */
  readonly onlyIfAny?: boolean;
  /** Removes the checkpoints, and leaves what nobody needs any more for the next call without this. */
  readonly manifestsOnly?: boolean;
  /** Ends looking for what is not needed, and removing it, early: `isCutShort`. The next call goes on. */
  readonly until?: AbortSignal | undefined;
  /** Id of a checkpoint that a policy must keep, whatever it says. */
  readonly inUse?: string | undefined;
  /**
   * Called when the manifests are gone, before anything else is removed; with those that are certainly gone
   * when the removal of one fails.
   */
  readonly onForgotten?: ((removed: readonly ForgottenCheckpoint[]) => Promise<void>) | undefined;
  /** See `LockOptions`. */
  readonly onWait?: ((text: string) => void) | undefined;
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
  /** Those of `kept` that a policy could not judge, because they are dated later than now. */
  readonly misdated: readonly Manifest[];
  /** Bytes that are free now; an estimate in a dry run. */
  readonly freedBytes: number;
  /** Count of packs and segments that were removed. */
  readonly removedObjects: number;
  readonly thinnedPacks: number;
  /** Whether it was looked for what is not needed. */
  readonly isSwept: boolean;
  /** That was ended early by `until`: `isSwept` is false then. */
  readonly isCutShort: boolean;
  /** Damage because of which less was freed than could have been; what stays is as it was. */
  readonly problems: readonly string[];
  /** There was no room to write packs anew without what is not needed: less was freed than could have been. */
  readonly isShortOfRoom: boolean;
}

/**
 * Takes the lock of the chain, except for a dry run, which changes nothing.
 * @throws REPO_LOCKED naming the owner, USAGE for a policy that keeps nothing, CHECKPOINT_MISDATED before
 *   anything is done, REPO_VERSION for a checkpoint of a newer version, what the backend throws. What is done
 *   until then is done, and the next call goes on.
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
      isShortOfRoom: false,
    };
  }
  const lock = await takeLock(backend, keys, { ...call, onWait: options.onWait });
  try {
    await removeUnfinished(backend, keys, call);
    return await forgetHeld(source, choice, () => lock.mustBeHeld(keys.chain, call), options);
  } finally {
    await lock.release();
    await keepReserve(backend, keys, {});
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
  if (plan.misdated.length > 0 && 'policy' in choice && choice.keepMisdated !== true)
    throw misdatedError(keys.chain, plan.misdated, choice.nowMs ?? Date.now());
  const gone: ForgottenCheckpoint[] = [];
  try {
    for (const { object, checkpoint } of plan.leaving) {
      await checkLock();
      await removeIfThere(backend, object.key, call);
      gone.push(checkpoint);
    }
  } catch (error) {
    // Nothing else would name the disk snapshots of those that are gone.
    await options.onForgotten?.(gone);
    throw error;
  }
  await options.onForgotten?.(gone);
  const kept = plan.kept.map(({ manifest }) => manifest);
  const { signal, thinAbove, until } = options;
  if (!plan.isSwept)
    return {
      ...resultOf(keys.chain, plan),
      ...{ freedBytes: plan.manifestBytes, removedObjects: 0, thinnedPacks: 0, isShortOfRoom: false },
    };
  const swept = await sweepToTheEnd(source, kept, plan.sweep, { signal, until, thinAbove, checkLock });
  return {
    ...resultOf(keys.chain, plan),
    ...swept,
    isSwept: !swept.isCutShort,
    freedBytes: plan.manifestBytes + swept.freedBytes,
    problems: [...plan.sweep.problems, ...swept.problems],
  };
}

/** One that is gone was removed by a call whose answer was lost. */
async function removeIfThere(backend: StorageBackend, key: string, call: CallOptions): Promise<void> {
  try {
    await backend.remove(key, call);
  } catch (error) {
    if (!isCheckpointError(error, 'STORAGE_NOT_FOUND')) throw error;
  }
}

const NOTHING: SweepPlan = { packs: [], segments: [], problems: [], freedBytes: 0 };

interface ForgetPlan {
  readonly kept: readonly KeptCheckpoint[];
  readonly removed: readonly ForgottenCheckpoint[];
  readonly misdated: readonly Manifest[];
  /** The manifests to be removed, oldest first. */
  readonly leaving: readonly { readonly object: StoredObject; readonly checkpoint: ForgottenCheckpoint }[];
  readonly manifestBytes: number;
  /** Empty when it was not looked for what is not needed. */
  readonly sweep: SweepPlan;
  readonly isSwept: boolean;
  readonly isCutShort: boolean;
}

function resultOf(
  chain: string,
  { kept, removed, misdated, isSwept, isCutShort, sweep: { problems } }: ForgetPlan,
): Pick<ForgetResult, 'chain' | 'kept' | 'removed' | 'misdated' | 'isSwept' | 'isCutShort' | 'problems'> {
  return { chain, kept, removed, misdated, isSwept, isCutShort, problems };
}

async function planForget(
  source: SweepSource,
  choice: ForgetChoice,
  options: ForgetOptions,
): Promise<ForgetPlan> {
  const { backend, keys } = source;
  const objects = await backend.list(keys.checkpoints, options);
  const { manifests, damaged } = await loadManifests(backend, keys, options);
  const { kept, removed, misdated, removedDamaged } =
    'policy' in choice
      ? {
          ...keepInUse(
            select(manifests, choice.policy, choice.calendar, choice.nowMs ?? Date.now()),
            options.inUse,
          ),
          removedDamaged: [],
        }
      : await selectNamed(source, choice.manifestKeys, manifests, damaged, options);
  const forgotten = new Map<string, ForgottenCheckpoint>([
    ...removed.map((manifest) => [manifestKey(manifest), { id: manifest.id, manifest }] as const),
    ...removedDamaged.map(({ key }) => [key, { id: idOfKey(key) ?? '', manifest: null }] as const),
  ]);
  const isWanted = options.manifestsOnly !== true && (options.onlyIfAny !== true || forgotten.size > 0);
  const stay = kept.map(({ manifest }) => manifest);
  const unreadable = damaged.filter(({ key }) => !forgotten.has(key));
  const plan = isWanted
    ? await unlessEnded(options.until, options, (call) =>
        planSweep(source, stay, unreadable, { ...options, ...call }),
      )
    : undefined;
  const leaving = objects.flatMap((object) => {
    const checkpoint = forgotten.get(object.key);
    return checkpoint === undefined ? [] : [{ object, checkpoint }];
  });
  return {
    kept,
    removed: [...forgotten.values()],
    misdated,
    leaving,
    manifestBytes: leaving.reduce((sum, { object }) => sum + object.sizeBytes, 0),
    sweep: plan ?? NOTHING,
    isSwept: plan !== undefined,
    isCutShort: isWanted && plan === undefined,
  };
}

/** What the policy says, but for a checkpoint that somebody builds on. */
function keepInUse(selection: Selection, id: string | undefined): Selection {
  const { kept, removed, misdated } = selection;
  const spared = removed.filter((manifest) => manifest.id === id);
  if (spared.length === 0) return selection;
  const all = [...kept, ...spared.map((manifest) => ({ manifest, reasons: ['in use'] }))];
  return {
    kept: all.sort((a, b) => a.manifest.seq - b.manifest.seq),
    removed: removed.filter((manifest) => manifest.id !== id),
    misdated,
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
  readonly misdated: readonly Manifest[];
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
    misdated: [],
    removedDamaged,
  };
}
