/** Locks of a chain as objects: what one says of its owner (docs/format.md, locks). */

import { CheckpointError, isCheckpointError } from '../../errors.js';
import type { ChainKeys } from '../../format/chain-keys.js';
import { checkVersion, FORMAT_NAME, FORMAT_VERSION } from '../../format/format-version.js';
import { openSealedJson, sealJson } from '../../format/sealed-json.js';
import { commandLineOf } from '../../host/process-identity.js';
import { fateOf, thisProcess, type ProcessOwner } from '../../host/process-owner.js';
import { JsonFields } from '../../records/json-fields.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import type { JsonObject } from '../../types.js';
import { loadSealed } from '../read/load-sealed.js';

export interface LockOwner extends ProcessOwner {
  readonly key: string;
  readonly nonce: string;
  /** ISO 8601. */
  readonly time: string;
  /** A living owner beats at least so often; 0 for one that does not beat. */
  readonly beatMs: number;
}

/** Longest time between two beats that is believed. */
const MAX_BEAT_MS = 600_000;
const NONCE = /^[0-9a-f]{16}$/;

export function encodeLock(beatMs: number): Uint8Array {
  const head = { format: FORMAT_NAME, version: FORMAT_VERSION, requires: [] };
  const owner: JsonObject = { ...head, time: new Date().toISOString(), beatMs, ...thisProcess() };
  return sealJson(owner);
}

/** @throws REPO_DAMAGED, REPO_VERSION */
export function decodeLock(key: string, bytes: Uint8Array): LockOwner {
  const json = new JsonFields(key, openSealedJson(key, bytes));
  json.oneOf('format', [FORMAT_NAME]);
  checkVersion(key, json.count('version'), json.texts('requires'));
  return {
    key,
    nonce: nonceOf(key),
    time: json.text('time'),
    beatMs: json.has('beatMs') ? json.count('beatMs', MAX_BEAT_MS) : 0,
    bootId: json.text('bootId'),
    machineId: json.text('machineId'),
    hostName: json.text('hostName'),
    pidNamespace: json.text('pidNamespace'),
    pid: json.count('pid'),
    startTime: json.text('startTime'),
  };
}

export function nonceOf(lockKey: string): string {
  return lockKey.slice(lockKey.lastIndexOf('/') + 1);
}

/** Keys of all locks of a chain. What goes by another kind of name is none. */
export async function lockKeys(
  backend: StorageBackend,
  keys: ChainKeys,
  options: CallOptions,
): Promise<readonly string[]> {
  const objects = await backend.list(keys.locks, options);
  return objects.map(({ key }) => key).filter((key) => key === keys.lock(nonceOf(key)) && isNonce(key));
}

/** @returns undefined when the lock was released in the meantime @throws REPO_DAMAGED, REPO_VERSION */
export async function readLock(
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
      hint: 'when no cairn is writing to this chain, remove the lock with "cairn unlock --force"',
    });
  }
}

/** Whose lock it is, in words: process, host, since when, and what the process is if it runs here. */
export function describeOwner(owner: LockOwner): string {
  const command = fateOf(owner) === 'alive' ? commandLineOf(owner.pid) : '';
  const what = command === '' ? '' : ` (${command})`;
  return `process ${owner.pid} on ${owner.hostName}${what}, since ${owner.time}`;
}

function isNonce(key: string): boolean {
  return NONCE.test(nonceOf(key));
}
