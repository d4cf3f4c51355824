/**
 * The shares of a VM's pages and their owners.
 *
 * A stripe of pages always belongs to the same owner, so that the previous versions kept there are found
 * again. Piscina gives any free thread a task; ownership comes from one pool of a single thread per share.
 */

import { Piscina } from 'piscina';

import { splitByOwner } from '../bitmap/split-by-owner.js';
import { CheckpointError, isCheckpointError } from '../errors.js';
import { Scratch } from '../host/scratch.js';
import type { PageRuns } from '../types.js';
import {
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

export interface SharePoolOptions {
  /** Number of threads, at least 1. */
  readonly workers: number;
  readonly settings: ShareSettings;
}

export class SharePool {
  readonly shares: readonly ShareOperations[];
  /** Memory that owners see as well, so that what is handed to them is not copied on the way. */
  readonly scratch = new Scratch((sizeBytes) => new Uint8Array(new SharedArrayBuffer(sizeBytes)));

  private constructor(shares: readonly ShareOperations[]) {
    this.shares = shares;
  }

  /**
   * Starts the owners and waits until each has its reader open.
   * @throws VM_GONE, VM_PERMISSION, WORKER_FAILED
   */
  static async open(options: SharePoolOptions): Promise<SharePool> {
    const count = Math.max(1, options.workers);
    const settings: ShareSettings = {
      ...options.settings,
      cacheBytes: Math.floor(options.settings.cacheBytes / count),
    };
    const shares = Array.from({ length: count }, () => new WorkerShare(settings));
    try {
      await Promise.all(shares.map((share) => share.reserve({ room: 0, touch: 0 })));
    } catch (error) {
      await Promise.all(shares.map((share) => share.close()));
      throw error;
    }
    return new SharePool(shares);
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

/** A share that lives in a thread of its own. */
class WorkerShare implements ShareOperations {
  readonly #pool: Piscina<WorkerTask, WorkerReply>;

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

  reserve(request: ReserveRequest): Promise<void> {
    return this.#call('reserve', request);
  }
  capture(runs: PageRuns): Promise<CaptureReply> {
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
  forget(): Promise<void> {
    return this.#call('forget', null);
  }
  async close(): Promise<void> {
    await this.#pool.destroy();
  }

  async #call<T>(operation: ShareOperation, argument: unknown): Promise<T> {
    let reply: WorkerReply;
    try {
      reply = await this.#pool.run({ operation, argument });
    } catch (cause) {
      if (isCheckpointError(cause)) throw cause;
      throw new CheckpointError('WORKER_FAILED', `a worker thread died during "${operation}"`, { cause });
    }
    if ('error' in reply) throw CheckpointError.fromJSON(reply.error);
    return reply.result as T;
  }
}
