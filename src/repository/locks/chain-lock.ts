/**
 * One writer a chain (docs/format.md, locks).
 *
 * A lock is an object of its own name below `locks/`: whoever wants the chain creates one, then lists. The
 * owner is the one who sees no other that may be alive; whoever sees one takes its own back. When two come at
 * once, at least one of them sees the other, so there are never two owners; a lock left by a dead process is
 * removed under its own name, which nobody else's ever has.
 *
 * An owner may lose its lock all the same: removed by force, or because it was silent for too long. What
 * keeps it from committing then is the order of steps:
 *
 *     loser        manifest written, without a name yet -> is my lock there? -> the manifest gets its name
 *     next owner   the loser's lock removed -> own lock -> files without a name removed -> manifests listed
 *
 * If the loser still saw its lock, its file was there before the next owner cleared away, so either it has
 * lost the file, or the manifest had its name in time to be listed.
 */

import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';

import { CheckpointError, isCheckpointError } from '../../errors.js';
import type { ChainKeys } from '../../format/chain-keys.js';
import { fateOf } from '../../host/process-owner.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import { BEAT_MS, Heartbeat, observationMs, observe } from './heartbeat.js';
import { exists, removeIfPresent, removeLock } from './lock-objects.js';
import { describeOwner, encodeLock, lockKeys, nonceOf, readLock, type LockOwner } from './lock-record.js';

export interface LockOptions extends CallOptions {
  /** Called with words for the operator when it has to be waited for a while. */
  readonly onWait?: ((text: string) => void) | undefined;
  /** Time between two signs of life. */
  readonly beatMs?: number | undefined;
}

/** Two writers that come at once see each other and both step back; the second round tells them apart. */
const ATTEMPTS = 3;
const MAX_WAIT_MS = 60;

export class ChainLock {
  readonly key: string;
  readonly #backend: StorageBackend;
  readonly #heartbeat: Heartbeat;

  private constructor(backend: StorageBackend, keys: ChainKeys, beatMs: number) {
    this.#backend = backend;
    const nonce = randomBytes(8).toString('hex');
    this.key = keys.lock(nonce);
    this.#heartbeat = new Heartbeat(backend, keys, nonce, beatMs);
  }

  /**
   * @throws REPO_LOCKED naming the owner, REPO_DAMAGED for a lock that cannot be read, and what the backend
   *   throws
   */
  static async take(backend: StorageBackend, keys: ChainKeys, options: LockOptions): Promise<ChainLock> {
    const { signal, beatMs = BEAT_MS } = options;
    for (let attempt = 1; ; attempt++) {
      const lock = new ChainLock(backend, keys, beatMs);
      try {
        await backend.save(lock.key, encodeLock(beatMs), { signal });
        lock.#heartbeat.start();
        const owner = await otherOwner(backend, keys, lock.key, options);
        if (owner === undefined) {
          await removeStrayBeats(backend, keys, options);
          return lock;
        }
        if (attempt === ATTEMPTS) throw lockedBy(keys.chain, owner);
      } catch (error) {
        await lock.release().catch(() => undefined);
        // An operator's `unlock --force` has cleared away the lock while it was written.
        if (!isCheckpointError(error, 'STORAGE_NOT_FOUND') || attempt === ATTEMPTS) throw error;
      }
      await lock.release();
      await delay(Math.random() * MAX_WAIT_MS);
    }
  }

  /** False when somebody has removed the lock, or goes on under it on a copy of this machine. */
  async isHeld(options: CallOptions): Promise<boolean> {
    return (await exists(this.#backend, this.key, options)) && (await this.#heartbeat.isAlone(options));
  }

  /** @throws REPO_LOCKED when it is not held any more */
  async mustBeHeld(chain: string, options: CallOptions): Promise<void> {
    if (await this.isHeld(options)) return;
    const what = this.#heartbeat.isCopied
      ? 'is in use by a copy of this machine as well'
      : 'was removed while it was in use';
    throw new CheckpointError('REPO_LOCKED', `the lock of chain ${chain} ${what}`, {
      hint: 'make sure that no other cairn writes to this chain, then try again',
      retryable: true,
      detail: { chain, lost: true },
    });
  }

  async release(): Promise<void> {
    await this.#heartbeat.stop();
    // A copy of this machine that goes on under this lock keeps it.
    if (!this.#heartbeat.isCopied) await removeIfPresent(this.#backend, this.key);
  }
}

/**
 * Finds another owner who may be alive, and removes the locks of those who are not.
 * @throws REPO_LOCKED for one that was watched and lives
 */
async function otherOwner(
  backend: StorageBackend,
  keys: ChainKeys,
  ownKey: string,
  options: LockOptions,
): Promise<LockOwner | undefined> {
  const unseen: LockOwner[] = [];
  for (const key of await lockKeys(backend, keys, options)) {
    if (key === ownKey) continue;
    const owner = await readLock(backend, key, options);
    if (owner === undefined) continue;
    const fate = fateOf(owner);
    if (fate === 'gone') await removeLock(backend, keys, key, options);
    else if (fate === 'unseen' && owner.beatMs > 0) unseen.push(owner);
    else return owner;
  }
  for (const owner of unseen) {
    options.onWait?.(waitText(keys.chain, owner));
    const found = await observe(backend, keys, owner, options);
    // Whoever gives signs of life is no other that has come at once, so there is nothing to be tried again.
    if (found === 'alive') throw lockedBy(keys.chain, owner);
    if (found === 'silent') await removeLock(backend, keys, owner.key, options);
  }
  return undefined;
}

/** What a beat leaves that was under way when its lock was removed. */
async function removeStrayBeats(
  backend: StorageBackend,
  keys: ChainKeys,
  options: CallOptions,
): Promise<void> {
  const beats = await backend.list(keys.beats, options);
  if (beats.length === 0) return;
  const prefixes = (await lockKeys(backend, keys, options)).map((key) => keys.beatsOf(nonceOf(key)));
  for (const { key } of beats)
    if (!prefixes.some((prefix) => key.startsWith(prefix))) await removeIfPresent(backend, key);
}

/** What is said before a lock is watched. */
export function waitText(chain: string, owner: LockOwner): string {
  const seconds = Math.ceil(observationMs(owner) / 1000);
  return (
    `chain ${chain} has a lock of ${describeOwner(owner)}, which cannot be seen from here: ` +
    `it is watched for ${seconds} s for signs of life`
  );
}

function lockedBy(chain: string, owner: LockOwner): CheckpointError {
  return new CheckpointError('REPO_LOCKED', `chain ${chain} is being written by ${describeOwner(owner)}`, {
    retryable: true,
    hint: 'wait for it or stop it; if that process is known to be gone, remove its lock with "cairn unlock"',
    detail: { chain, pid: owner.pid, hostName: owner.hostName, time: owner.time, key: owner.key },
  });
}
