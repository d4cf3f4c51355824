/**
 * Checkpoints that are compared, byte by byte, with what the guest had at the end of that very pause. The library is used as a
 * program that embeds it would; the hypervisor that it gets reads the truth before each resume.
 */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';

import {
  HypervisorRegistry,
  openBackend,
  openSession,
  Repository,
  verify,
  type CheckpointSession,
  type CheckpointSummary,
  type Hypervisor,
} from '../../src/index.js';
import type { DirtyTracker } from '../../src/hypervisor/dirty-tracker.js';
import type { PauseControl } from '../../src/hypervisor/run-state.js';
import { kvmHypervisor } from '../../adapters/kvm/kvm-hypervisor.js';
import type { LabMachine } from '../lab/machine.js';
import { instead } from '../lab/support/instead.js';
import { processTruth } from '../lab/support/process-truth.js';
import { StoredMemory } from '../lab/support/stored-memory.js';

export interface ExactResult {
  readonly summary: CheckpointSummary;
  /** Without the time in which the truth was read. */
  readonly pauseMs: number;
  /**
   * First pages that are not what the guest had. Found out while the VM goes on: to be waited for before the next checkpoint,
   * which uses the memory that holds the truth.
   */
  readonly differing: Promise<readonly string[]>;
}

export interface ExactOptions {
  /** As --tracker. */
  readonly tracker: string;
  /** Small, so that there are live rounds. */
  readonly maxPauseMs: number;
  /** Folder of the repository; made when it is not there. */
  readonly repository: string;
}

/** Of so many checkpoints of an attachment one is read back whole, else what changed since the one before. All memory is compared. */
const WHOLE_EVERY = 20;

/** One attachment to the machine. Another one goes on from its records, as another process would. */
export class ExactSession {
  readonly #session: CheckpointSession;
  readonly #repository: Repository;
  readonly #stored: StoredMemory;
  readonly #truths: PauseTruths;
  #count = 0;
  #comparison: Promise<unknown> | undefined;

  private constructor(session: CheckpointSession, repository: Repository, path: string, truths: PauseTruths) {
    this.#session = session;
    this.#repository = repository;
    this.#stored = new StoredMemory(path);
    this.#truths = truths;
  }

  static async open(
    machine: LabMachine,
    options: ExactOptions,
    hypervisor: Hypervisor = kvmHypervisor,
  ): Promise<ExactSession> {
    const { tracker, maxPauseMs, repository: path } = options;
    const repository = existsSync(path)
      ? await Repository.open(openBackend(path))
      : await Repository.init(openBackend(path));
    const truths = new PauseTruths(machine);
    const session = await openSession(
      new HypervisorRegistry([truths.watching(hypervisor)]),
      machine.address,
      {
        repository,
        tracker,
        maxPauseMs,
        runtimeDir: join(machine.dir, 'runtime'),
        memoryOnly: true,
        // One scenario plugs memory in; nothing here is restored.
        attach: { allowChangedMachine: true },
        // Under emulation each thread costs a start of JavaScript.
        workers: 1,
        // What is read back for each comparison is read and hashed quicker when it is small.
        compressionLevel: 1,
      },
    );
    return new ExactSession(session, repository, path, truths);
  }

  get trackerKind(): string {
    return this.#session.trackerKind;
  }

  async checkpoint(forceBase = false): Promise<ExactResult> {
    const summary = await this.#session.checkpoint({ forceBase });
    const { truth, readMs } = this.#truths.take();
    const differing = this.#stored.differing(truth, summary.checkpointId, this.#count++ % WHOLE_EVERY === 0);
    // Its failure is met by whoever waits for it.
    this.#comparison = differing.catch(() => undefined);
    return { summary, pauseMs: summary.pauseMs - readMs, differing };
  }

  async verify(): Promise<readonly unknown[]> {
    return (await verify(this.#repository)).problems;
  }

  async close(): Promise<void> {
    await this.#session.close();
    await this.#comparison;
    await this.#stored.close();
    await this.#repository.close();
  }
}

interface PauseTruth {
  readonly truth: ReadonlyMap<string, Buffer>;
  readonly readMs: number;
}

/** Reads all memory of the machine at the end of each pause: the engine has copied its last page and asks for the resume. */
class PauseTruths {
  readonly #machine: LabMachine;
  #memory: ReadonlyMap<string, Buffer> | undefined;
  #last: PauseTruth | undefined;

  constructor(machine: LabMachine) {
    this.#machine = machine;
  }

  watching(hypervisor: Hypervisor): Hypervisor {
    return instead(hypervisor, {
      attach: async (address, options) => {
        const vm = await hypervisor.attach(address, options);
        const tracker = (kind: string): DirtyTracker => {
          const opened = vm.memory.tracker(kind);
          const { traits } = opened;
          const { picture } = traits;
          if (picture === undefined) return opened;
          const watched = instead(picture, { runState: this.#watched(picture.runState) });
          return instead(opened, { traits: { ...traits, picture: watched } });
        };
        return instead(vm, {
          runState: this.#watched(vm.runState),
          memory: instead(vm.memory, { tracker }),
        });
      },
    });
  }

  #watched<T extends PauseControl>(runState: T): T {
    const resume: PauseControl['resume'] = async (running) => {
      await this.#read();
      await runState.resume(running);
    };
    return instead<PauseControl>(runState, { resume }) as T;
  }

  /** Of the pause before. */
  take(): PauseTruth {
    if (this.#last === undefined) throw new Error('a checkpoint without a pause');
    const last = this.#last;
    this.#last = undefined;
    return last;
  }

  async #read(): Promise<void> {
    const from = performance.now();
    const { running } = (await this.#machine.qmp.command('query-status')) as { running: boolean };
    if (running) throw new Error('the VM runs at the end of its pause');
    const truth = await processTruth(this.#machine, this.#memory);
    this.#memory = truth;
    this.#last = { truth, readMs: performance.now() - from };
  }
}
