/**
 * The shares of a VM's pages and their owners.
 *
 * A stripe of pages belongs to the same owner from checkpoint to checkpoint, so that the previous versions kept
 * there are found again. Piscina gives any free thread a task; ownership comes from one pool of a single thread
 * per share.
 *
 * A thread takes 0.1 s of a processor to start, as much as the rest of a small increment. So there is one at
 * first, and `widen` starts the others when there is work for them. Stripes then change owners; a new owner does
 * not have their previous versions, and asks for them as for any that it lacks.
 */

import { setTimeout as delay } from 'node:timers/promises';

import { Piscina } from 'piscina';

import { splitByOwner } from '../bitmap/split-by-owner.js';
import { CheckpointError, isCheckpointError } from '../errors.js';
import type { GuestReaderDescription } from '../hypervisor/guest-reader.js';
import { Scratch } from '../host/scratch.js';
import type { PageRuns } from '../types.js';
import {
  ENCODE_BATCH_PAGES,
  STRIPE_PAGES,
  type CaptureReply,
  type EncodeReply,
  type EncodeRequest,
  type MissingReply,
  type MissingRequest,
  type ReserveRequest,
  type SealReply,
  type ShareOperation,
  type ShareOperations,
  type ShareSettings,
} from './messages.js';
import type { WorkerReply, WorkerTask } from './worker.js';

export interface SharePoolOptions extends ShareSettings {
  /** Number of threads, at least 1, once there is work for all of them. */
  readonly workers: number;
}

export class SharePool {
  /** Memory that owners see as well, so that what is handed to them is not copied on the way. */
  readonly scratch = new Scratch((sizeBytes) => new Uint8Array(new SharedArrayBuffer(sizeBytes)));
  readonly #settings: ShareSettings;
  readonly #mostShares: number;
  readonly #shares: WorkerShare[];
  #reader: GuestReaderDescription | undefined;
  #firstIsOpen: Promise<void> = Promise.resolve();

  /** Starts the first owner, and does not wait for it. */
  constructor({ workers, ...settings }: SharePoolOptions) {
    this.#mostShares = Math.max(1, workers);
    this.#settings = { ...settings, cacheBytes: Math.floor(settings.cacheBytes / this.#mostShares) };
    this.#shares = [new WorkerShare(this.#settings)];
  }

  get shares(): readonly ShareOperations[] {
    return this.#shares;
  }

  /** Says where pages are read from, before anything else; not waited for either. */
  open(reader: GuestReaderDescription): void {
    this.#reader = reader;
    this.#firstIsOpen = this.#shares[0]!.open(reader);
    // `opened` reports it; a pool that is closed before that has nobody to tell.
    this.#firstIsOpen.catch(() => undefined);
  }

  /** Waits until the first owner has its reader open. @throws VM_GONE, VM_PERMISSION, WORKER_FAILED */
  opened(): Promise<void> {
    return this.#firstIsOpen;
  }

  /**
   * Has all owners started, and their readers open, if so many pages are more than one of them takes at a time.
   * Nothing may be captured. Changes what `split` says.
   * @throws VM_GONE, VM_PERMISSION, WORKER_FAILED
   */
  async widen(pageCount: number): Promise<void> {
    const reader = this.#reader;
    if (pageCount <= ENCODE_BATCH_PAGES || this.#shares.length === this.#mostShares || reader === undefined)
      return;
    const more = Array.from(
      { length: this.#mostShares - this.#shares.length },
      () => new WorkerShare(this.#settings),
    );
    try {
      await Promise.all(more.map((share) => share.open(reader)));
    } catch (error) {
      await Promise.all(more.map((share) => share.close()));
      throw error;
    }
    this.#shares.push(...more);
  }

  /** The part of `runs` that each share owns, in the order of `shares`. */
  split(runs: PageRuns): readonly PageRuns[] {
    return splitByOwner(runs, STRIPE_PAGES, this.shares.length);
  }

  /** Copies `runs` from the guest, each share its part, all at once. @returns pages copied */
  async capture(runs: PageRuns): Promise<number> {
    const parts = this.split(runs);
    const work: Promise<CaptureReply>[] = [];
    this.shares.forEach((share, i) => {
      if (parts[i]!.length > 0) work.push(share.capture(parts[i]!));
    });
    const replies = await Promise.all(work);
    return replies.reduce((sum, reply) => sum + reply.capturedPages, 0);
  }

  /** @param requests one for each share, in the order of `shares`. @throws CAPTURE_FULL */
  async reserve(requests: readonly ReserveRequest[]): Promise<void> {
    await Promise.all(this.shares.map((share, i) => share.reserve(requests[i]!)));
  }

  async reset(): Promise<void> {
    await Promise.all(this.shares.map((share) => share.reset()));
  }

  async forget(): Promise<void> {
    await Promise.all(this.shares.map((share) => share.forget()));
  }

  async close(): Promise<void> {
    await Promise.all(this.shares.map((share) => share.close()));
  }
}

/**
 * What an encode leaves behind is buffers outside of the JavaScript heap, which nothing but a collection
 * frees. A young generation this small makes them frequent: 227 instead of 281 MiB resident, and no
 * difference in the time of a base.
 */
const YOUNG_GENERATION_MIB = 2;
/** A thread that has not started by then is ended all the same. */
const START_LIMIT_MS = 10_000;

/** A share that lives in a thread of its own. */
class WorkerShare implements ShareOperations {
  readonly #pool: Piscina<WorkerTask, WorkerReply>;
  #hasCaptured = false;
  #hasAnswered = false;

  constructor(settings: ShareSettings) {
    this.#pool = new Piscina<WorkerTask, WorkerReply>({
      filename: new URL('./worker.js', import.meta.url).href,
      minThreads: 1,
      maxThreads: 1,
      idleTimeout: Number.POSITIVE_INFINITY,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MIB },
      concurrentTasksPerWorker: 1,
      workerData: settings,
      // Waiting on Atomics instead of the event loop shortens the way into the worker by a few tenths of a
      // millisecond.
      atomics: 'sync',
    });
  }

  open(reader: GuestReaderDescription): Promise<void> {
    return this.#call('open', reader);
  }
  reserve(request: ReserveRequest): Promise<void> {
    return this.#call('reserve', request);
  }
  capture(runs: PageRuns): Promise<CaptureReply> {
    this.#hasCaptured = true;
    return this.#call('capture', runs);
  }
  seal(): Promise<SealReply> {
    return this.#call('seal', null);
  }
  missing(request: MissingRequest): Promise<MissingReply> {
    return this.#call('missing', request);
  }
  encode(request: EncodeRequest): Promise<EncodeReply> {
    return this.#call('encode', request);
  }
  reset(): Promise<void> {
    return this.#call('reset', null);
  }
  async forget(): Promise<void> {
    // A thread that is still starting need not be waited for: it has nothing to forget.
    if (this.#hasCaptured) await this.#call('forget', null);
  }
  async close(): Promise<void> {
    // A thread that is ended while it loads native code may take the whole process along.
    if (!this.#hasAnswered)
      await Promise.race([
        this.reset().catch(() => undefined),
        delay(START_LIMIT_MS, undefined, { ref: false }),
      ]);
    await this.#pool.destroy();
  }

  async #call<T>(operation: ShareOperation, argument: unknown): Promise<T> {
    let reply: WorkerReply;
    try {
      reply = await this.#pool.run({ operation, argument });
      this.#hasAnswered = true;
    } catch (cause) {
      if (isCheckpointError(cause)) throw cause;
      throw new CheckpointError('WORKER_FAILED', `a worker thread died during "${operation}"`, { cause });
    }
    if ('error' in reply) throw CheckpointError.fromJSON(reply.error);
    return reply.result as T;
  }
}
