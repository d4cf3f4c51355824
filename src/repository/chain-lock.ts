/**
 * One writer a chain (docs/format.md, locks).
 *
 * A lock is an object of its own name below `locks/`: whoever wants the chain creates one, then lists. The
 * owner is the one who sees no other that may be alive; whoever sees one takes its own back. When two come at
 * once, at least one of them sees the other, so there are never two owners; a lock left by a dead process is
 * removed under its own name, which nobody else's ever has.
 */

import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';

import { CheckpointError, isCheckpointError } from '../errors.js';
import type { CallOptions, StorageBackend } from '../storage/backend.js';
import { isCertainlyGone, thisProcess, type ProcessOwner } from '../host/process-owner.js';
import type { JsonObject } from '../types.js';
import type { ChainKeys } from '../format/chain-keys.js';
import { checkVersion, FORMAT_NAME, FORMAT_VERSION } from '../format/format-version.js';
import { JsonFields } from '../records/json-fields.js';
import { loadSealed } from './read/load-sealed.js';
import { openSealedJson, sealJson } from '../format/sealed-json.js';

export interface LockOwner extends ProcessOwner {
  readonly key: string;
  /** ISO 8601. */
  readonly time: string;
}

/** Two writers that come at once see each other and both step back; the second round tells them apart. */
const ATTEMPTS = 3;
const MAX_WAIT_MS = 60;

export class ChainLock {
  private constructor(
    private readonly backend: StorageBackend,
    readonly key: string,
  ) {}

  /**
   * @throws REPO_LOCKED naming the owner, REPO_DAMAGED for a lock that cannot be read, and what the backend
   *   throws
   */
  static async take(backend: StorageBackend, keys: ChainKeys, options: CallOptions): Promise<ChainLock> {
    for (let attempt = 1; ; attempt++) {
      const lock = new ChainLock(backend, keys.lock(randomBytes(8).toString('hex')));
      try {
        await backend.save(lock.key, encodeLock(), options);
        const owner = await otherOwner(backend, keys, lock.key, options);
        if (owner === undefined) return lock;
        if (attempt === ATTEMPTS) throw lockedBy(keys.chain, owner);
      } catch (error) {
        await lock.release().catch(() => undefined);
        throw error;
      }
      await lock.release();
      await delay(Math.random() * MAX_WAIT_MS);
    }
  }

  /** False when somebody has removed the lock by force. */
  async isHeld(options: CallOptions): Promise<boolean> {
    try {
      await this.backend.stat(this.key, options);
      return true;
    } catch (error) {
      if (isCheckpointError(error, 'STORAGE_NOT_FOUND')) return false;
      throw error;
    }
  }

  /** @throws REPO_LOCKED when somebody has removed the lock by force */
  async mustBeHeld(chain: string, options: CallOptions): Promise<void> {
    if (await this.isHeld(options)) return;
    throw new CheckpointError('REPO_LOCKED', `the lock of chain ${chain} was removed while it was in use`, {
      hint: 'make sure that no other cairn writes to this chain, then try again',
    });
  }

  async release(): Promise<void> {
    await removeIfPresent(this.backend, this.key);
  }
}

/** Removes every lock of the chain, whoever holds it. @returns keys of what was removed */
export async function removeLocks(
  backend: StorageBackend,
  keys: ChainKeys,
  options: CallOptions,
): Promise<readonly string[]> {
  const locks = (await backend.list(keys.locks, options)).map(({ key }) => key);
  for (const key of locks) await removeIfPresent(backend, key);
  return locks;
}

/** @throws REPO_DAMAGED, REPO_VERSION */
export function decodeLock(key: string, bytes: Uint8Array): LockOwner {
  const json = new JsonFields(key, openSealedJson(key, bytes));
  json.oneOf('format', [FORMAT_NAME]);
  checkVersion(key, json.count('version'), json.texts('requires'));
  return {
    key,
    time: json.text('time'),
    bootId: json.text('bootId'),
    machineId: json.text('machineId'),
    hostName: json.text('hostName'),
    pidNamespace: json.text('pidNamespace'),
    pid: json.count('pid'),
    startTime: json.text('startTime'),
  };
}

function encodeLock(): Uint8Array {
  const head = { format: FORMAT_NAME, version: FORMAT_VERSION, requires: [] };
  const owner: JsonObject = { ...head, time: new Date().toISOString(), ...thisProcess() };
  return sealJson(owner);
}

/** Finds another owner who may be alive, and removes the locks of those who are not. */
async function otherOwner(
  backend: StorageBackend,
  keys: ChainKeys,
  ownKey: string,
  options: CallOptions,
): Promise<LockOwner | undefined> {
  for (const { key } of await backend.list(keys.locks, options)) {
    if (key === ownKey) continue;
    const owner = await readLock(backend, key, options);
    if (owner === undefined) continue;
    if (!isCertainlyGone(owner)) return owner;
    await removeIfPresent(backend, key);
  }
  return undefined;
}

/** Undefined when the lock was released in the meantime. */
async function readLock(
  backend: StorageBackend,
  key: string,
  options: CallOptions,
): Promise<LockOwner | undefined> {
  try {
    return decodeLock(key, await loadSealed(backend, key, options));
  } catch (error) {
    if (isCheckpointError(error, 'STORAGE_NOT_FOUND')) return undefined;
    if (!isCheckpointError(error, 'REPO_DAMAGED')) throw error;
    throw new CheckpointError('REPO_DAMAGED', `${error.message}: it cannot be said who holds the lock`, {
      cause: error,
      detail: error.detail,
      hint: 'when no cairn is writing to this chain, remove the lock with "cairn unlock"',
    });
  }
}

async function removeIfPresent(backend: StorageBackend, key: string): Promise<void> {
  try {
    await backend.remove(key);
  } catch (error) {
    if (!isCheckpointError(error, 'STORAGE_NOT_FOUND')) throw error;
  }
}

function lockedBy(chain: string, owner: LockOwner): CheckpointError {
  const who = `process ${owner.pid} on ${owner.hostName}, since ${owner.time}`;
  return new CheckpointError('REPO_LOCKED', `chain ${chain} is being written by ${who}`, {
    retryable: true,
    hint: 'wait for it or stop it; if that process is known to be gone, remove its lock with "cairn unlock"',
    detail: { chain, pid: owner.pid, hostName: owner.hostName, time: owner.time, key: owner.key },
  });
}
