/**
 * Checkpoints that are compared, page by page, with what the guest had in that very pause. The library is used as a program
 * that embeds it would; a hook holds the pause until the truth is taken.
 */

import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import {
  CheckpointSession,
  hypervisors,
  openBackend,
  Repository,
  verify,
  type CheckpointSummary,
} from '../../src/index.js';
import type { LabMachine } from '../lab/machine.js';
import { differingPages } from '../lab/support/ground-truth.js';
import { readCheckpoint } from '../lab/support/oracle.js';
import { processTruth } from '../lab/support/process-truth.js';

export interface ExactResult {
  readonly summary: CheckpointSummary;
  /** First pages that are not what the guest had. */
  readonly differing: readonly string[];
}

export interface ExactOptions {
  /** As --tracker. */
  readonly tracker: string;
  /** Small, so that there are live rounds. */
  readonly maxPauseMs: number;
}

/** One attachment to the machine. Another one goes on from its records, as another process would. */
export class ExactSession {
  readonly #machine: LabMachine;
  readonly #session: CheckpointSession;
  readonly #repository: Repository;
  readonly #held: string;
  readonly #go: string;

  private constructor(machine: LabMachine, session: CheckpointSession, repository: Repository) {
    this.#machine = machine;
    this.#session = session;
    this.#repository = repository;
    this.#held = join(machine.dir, 'truth-held');
    this.#go = join(machine.dir, 'truth-go');
  }

  static async open(machine: LabMachine, options: ExactOptions): Promise<ExactSession> {
    const path = repositoryOf(machine);
    const repository = existsSync(path)
      ? await Repository.open(openBackend(path))
      : await Repository.init(openBackend(path));
    const held = join(machine.dir, 'truth-held');
    const go = join(machine.dir, 'truth-go');
    const session = await CheckpointSession.open({
      repository,
      hypervisors: hypervisors(),
      vm: machine.address,
      tracker: options.tracker,
      maxPauseMs: options.maxPauseMs,
      runtimeDir: join(machine.dir, 'runtime'),
      // Under emulation each thread costs a start of JavaScript; compression says nothing about trackers.
      workers: 1,
      compressionLevel: 0,
      hook:
        `[ "$CAIRN_PHASE" = paused ] || exit 0; echo held >${held}; ` +
        `while [ ! -e ${go} ]; do sleep 0.02; done; rm -f ${go} ${held}`,
    });
    return new ExactSession(machine, session, repository);
  }

  get trackerKind(): string {
    return this.#session.trackerKind;
  }

  async checkpoint(forceBase = false): Promise<ExactResult> {
    const taken = this.#session.checkpoint({ forceBase });
    const held = await this.#isHeld(taken);
    const truth = held ? await processTruth(this.#machine) : new Map<string, Buffer>();
    rmSync(this.#held, { force: true });
    writeFileSync(this.#go, '');
    const summary = await taken;
    const stored = await readCheckpoint(repositoryOf(this.#machine), summary.checkpointId);
    return { summary, differing: differingPages(truth, stored) };
  }

  /** False when the checkpoint ended without getting to its pause. */
  async #isHeld(taken: Promise<unknown>): Promise<boolean> {
    const over = new AbortController();
    // What went wrong is told by whoever awaits the checkpoint itself.
    void taken.catch(() => undefined).finally(() => over.abort());
    while (!existsSync(this.#held) || existsSync(this.#go)) {
      if (over.signal.aborted) return false;
      await sleep(5);
    }
    return true;
  }

  async verify(): Promise<readonly unknown[]> {
    return (await verify(this.#repository)).problems;
  }

  async close(): Promise<void> {
    await this.#session.close();
    await this.#repository.close();
  }
}

function repositoryOf(machine: LabMachine): string {
  return join(machine.dir, 'repo');
}
