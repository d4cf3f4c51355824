/**
 * The beats of a lock: signs of life of an owner that others cannot see.
 *
 *     locks/NONCE               says that its owner beats, and how often at least
 *     beats/NONCE-00000007      the newest beat; it takes the place of NONCE-00000006
 *
 * An object of the next number is created and the one before removed, so a beat never brings back a lock that
 * somebody has removed, as writing the lock anew would. An observer looks whether the list changes, on its
 * own monotonic clock: clocks of two hosts are never compared. A number that is taken already, or that is not
 * ours, was made by a copy of this very machine that goes on under the same lock.
 *
 * A beat that comes late, because the host or the storage hangs, costs an owner its lock and one checkpoint,
 * and no data: see `ChainLock`.
 */

import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';

import { isCheckpointError } from '../../errors.js';
import { seqOfKey, type ChainKeys } from '../../format/chain-keys.js';
import type { CallOptions, StorageBackend } from '../../storage/backend.js';
import { exists, removeIfPresent } from './lock-objects.js';
import type { LockOwner } from './lock-record.js';

/** One small object in this time is little for a storage that takes checkpoints. */
export const BEAT_MS = 15_000;
/** An owner that misses so many beats in a row counts as gone: about as long as a host takes to boot. */
const MISSED_BEATS = 4;
const POLLS_PER_BEAT = 4;

export class Heartbeat {
  readonly #backend: StorageBackend;
  readonly #keys: ChainKeys;
  readonly #nonce: string;
  readonly #everyMs: number;
  /** Numbers of beats of ours that may be there. */
  #numbers = new Set<number>();
  #last = 0;
  #timer: NodeJS.Timeout | undefined;
  #beating: Promise<void> = Promise.resolve();
  #isStopped = false;
  /** Somebody else beats under this name. */
  #isCopied = false;

  constructor(backend: StorageBackend, keys: ChainKeys, nonce: string, everyMs: number) {
    this.#backend = backend;
    this.#keys = keys;
    this.#nonce = nonce;
    this.#everyMs = everyMs;
  }

  /** Somebody else goes on under the same lock: what is there is not ours alone. */
  get isCopied(): boolean {
    return this.#isCopied;
  }

  start(): void {
    this.#timer = setTimeout(() => {
      this.#beating = this.#beat()
        // A storage that fails now may do the next time.
        .catch(() => undefined)
        .finally(() => {
          if (!this.#isStopped) this.start();
        });
    }, this.#everyMs);
    // A lock is no reason to stay alive.
    this.#timer.unref();
  }

  /** Waits for the beat under way, and takes the beats away. Best effort: one without its lock is nothing. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    clearTimeout(this.#timer);
    await this.#beating;
    if (this.#isCopied) return;
    for (const number of this.#numbers) await this.#remove(number).catch(() => undefined);
  }

  /** False once a beat was seen that is not ours. */
  async isAlone(options: CallOptions): Promise<boolean> {
    const listed = await this.#backend.list(this.#keys.beatsOf(this.#nonce), options);
    if (listed.some(({ key }) => !this.#numbers.has(seqOfBeat(key)))) this.#isCopied = true;
    return !this.#isCopied;
  }

  async #beat(): Promise<void> {
    if (this.#isCopied || !(await exists(this.#backend, this.#keys.lock(this.#nonce), {}))) {
      this.#isStopped = true;
      return;
    }
    if (!(await this.isAlone({}))) return;
    const number = ++this.#last;
    const before = [...this.#numbers];
    this.#numbers.add(number);
    try {
      await this.#backend.save(this.#keys.beat(this.#nonce, number), new Uint8Array(0));
    } catch (error) {
      if (isCheckpointError(error, 'STORAGE_EXISTS')) this.#isCopied = true;
      throw error;
    }
    for (const old of before) await this.#remove(old);
  }

  async #remove(number: number): Promise<void> {
    await removeIfPresent(this.#backend, this.#keys.beat(this.#nonce, number));
    this.#numbers.delete(number);
  }
}

/**
 * Watches a lock for as long as its owner would need to be missed. A storage that does not answer keeps its owner from beating
 * as well, so the time begins anew once it answers again.
 * @returns `released` when the lock is gone meanwhile
 * @throws what the signal is aborted with, what the backend throws
 */
export async function observe(
  backend: StorageBackend,
  keys: ChainKeys,
  owner: Pick<LockOwner, 'key' | 'nonce' | 'beatMs'>,
  { signal }: CallOptions,
): Promise<'alive' | 'silent' | 'released'> {
  const beats = async (): Promise<string> =>
    (await backend.list(keys.beatsOf(owner.nonce), { signal })).map(({ key }) => key).join();
  const first = await beats();
  let until = performance.now() + observationMs(owner);
  for (;;) {
    await delay(owner.beatMs / POLLS_PER_BEAT, undefined, { signal }).catch((error: unknown) => {
      signal?.throwIfAborted();
      throw error;
    });
    const askedAt = performance.now();
    if (!(await exists(backend, owner.key, { signal }))) return 'released';
    if ((await beats()) !== first) return 'alive';
    const answeredAt = performance.now();
    if (answeredAt - askedAt > owner.beatMs) until = answeredAt + observationMs(owner);
    else if (askedAt > until) return 'silent';
  }
}

export function observationMs({ beatMs }: Pick<LockOwner, 'beatMs'>): number {
  return MISSED_BEATS * beatMs;
}

function seqOfBeat(key: string): number {
  return seqOfKey(key.replace(/[0-9a-f]{16}-(?=[0-9a-f]{8}$)/, ''));
}
