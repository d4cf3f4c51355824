/** Runs in dom0: a chain of checkpoints of one guest, each compared with the truth, and restores out of it. */

import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { decodeDeviceState } from '../../../../adapters/xen/stream/device-state.js';
import { openSession } from '../../../../src/checkpoint/open-session.js';
import type { CheckpointSession } from '../../../../src/checkpoint/session.js';
import type { CheckpointSummary } from '../../../../src/checkpoint/summary.js';
import type { Manifest } from '../../../../src/format/manifest.js';
import { importCheckpoint } from '../../../../src/intake/import.js';
import { hypervisors } from '../../../../src/index.js';
import { Repository } from '../../../../src/repository/repository.js';
import { exportCheckpoint, restoreCheckpoint } from '../../../../src/restore/restore.js';
import { openBackend } from '../../../../src/storage/open.js';
import { check, type Context } from './harness.js';
import { compareWithTruth, WatchedXen, type OracleResult } from './oracle.js';
import { xl, XenGuest, type Tick } from './xen-guest.js';

export interface Taken {
  readonly id: string;
  readonly scope: string;
  /** The guest's counter right after the checkpoint. */
  readonly tick: number;
  readonly oracle: OracleResult;
  /** How long the guest stood still, without the time that the oracle took. */
  readonly stopMs: number;
  readonly summary: CheckpointSummary;
}

/** Rings, pages with event bits, and what backends still had to do for a guest of the lab. */
const MOST_TOUCHED = 512;
/** The truth is read in the pause, twice, on an emulated machine. */
export const PAUSE_LIMIT_MS = 600_000;

export class GuestChain {
  readonly guest: XenGuest;
  readonly repository: Repository;
  readonly taken: Taken[] = [];
  readonly #context: Context;
  readonly #withDisks: boolean;
  readonly #watched: WatchedXen;
  readonly #runtimeDir: string;
  #session: CheckpointSession | undefined;

  private constructor(guest: XenGuest, repository: Repository, context: Context, withDisks: boolean) {
    this.guest = guest;
    this.repository = repository;
    this.#context = context;
    this.#withDisks = withDisks;
    this.#watched = new WatchedXen(guest);
    this.#runtimeDir = join(context.dir, 'runtime');
  }

  /** @param withDisks checkpoints hold the disks as well */
  static async open(guest: XenGuest, context: Context, withDisks = false): Promise<GuestChain> {
    const repository = await Repository.init(openBackend(join(context.dir, 'repo')));
    return new GuestChain(guest, repository, context, withDisks);
  }

  get runtimeDir(): string {
    return this.#runtimeDir;
  }

  get repositoryPath(): string {
    return join(this.#context.dir, 'repo');
  }

  /** Takes a checkpoint and compares it with the truth: nothing may differ. */
  async checkpoint(tracker = 'auto'): Promise<Taken> {
    this.#session ??= await openSession(this.#watched.registry, this.guest.address, {
      repository: this.repository,
      workers: 1,
      compressionLevel: 1,
      memoryOnly: !this.#withDisks,
      tracker,
      pauseLimitMs: PAUSE_LIMIT_MS,
      runtimeDir: this.#runtimeDir,
    });
    const summary = await this.#session.checkpoint();
    const { truth } = this.#watched;
    if (truth === undefined) throw new Error('the guest was not resumed');
    const manifest = await this.repository.find(summary.checkpointId);
    const oracle = await compareWithTruth(this.repository.reader(manifest), truth);
    const taken = {
      id: summary.checkpointId,
      scope: summary.kind,
      tick: truth.tick,
      oracle,
      stopMs: summary.pauseMs - truth.readMs,
      summary,
    };
    this.taken.push(taken);
    this.#context.say(
      `${taken.id} ${summary.kind} tick ${taken.tick}: ${JSON.stringify({ ...oracle, total: truth.totalPages })} ` +
        `dirty ${summary.dirtyPages} in the stop ${summary.pausePages}, rounds ${summary.rounds}, stop ${taken.stopMs.toFixed(0)} ms, ` +
        `total ${summary.totalMs.toFixed(0)} ms, stored ${summary.storedBytes}`,
    );
    check(oracle.differing === 0, `no page differs (${oracle.differing} do)`);
    check(
      oracle.touched.length <= MOST_TOUCHED,
      `few pages change in the stop (${oracle.touched.length} did)`,
    );
    check(oracle.missing === 0 && oracle.surplus === 0, `the same frames: ${JSON.stringify(oracle)}`);
    return taken;
  }

  async closeSession(): Promise<void> {
    await this.#session?.close();
    this.#session = undefined;
  }

  /**
   * A file of `xl save -c`, in a repository of its own.
   * @param ticked what the guest had counted to before the save, and after it
   * @returns how to restore it once the guest is gone
   */
  async import(path: string, ticked: readonly [number, number]): Promise<() => Promise<void>> {
    const repository = await Repository.init(openBackend(join(this.#context.dir, 'imported')));
    const { checkpointId: id } = await importCheckpoint({
      repository,
      hypervisors: hypervisors(),
      format: 'xl',
      path,
      workers: 1,
    });
    return () => this.restore({ id, tick: ticked[0] }, repository, ticked[1]);
  }

  /** Restores it, and lets it count on from where it was: from `tick`, or at the latest from `latestTick`. */
  async restore(
    { id, tick }: Pick<Taken, 'id' | 'tick'>,
    repository: Repository = this.repository,
    latestTick = tick,
  ): Promise<void> {
    const before = this.guest.ticks().length;
    const manifest = await repository.find(id);
    const result = await restoreCheckpoint(
      { repository, hypervisors: hypervisors(), manifest, trust: isUnsealed(manifest) },
      { paused: false, keepDisks: !this.#withDisks },
    );
    check(result.running, 'the restored guest is said to run');
    const after = await this.#ticksAfter(before, 3);
    this.#context.say(
      `restored ${id} (tick ${tick}): ${JSON.stringify(after[0])} ... ${JSON.stringify(after.at(-1))}`,
    );
    const first = after[0]!;
    // The console may lag behind the checkpoint by what the guest had printed but nobody read.
    check(first.tick >= tick && first.tick <= latestTick + 2, `it counts on from ${tick}: ${first.tick}`);
    after.forEach((line, i) => {
      check(line.tick === first.tick + i, 'it counts without a gap');
      check(line.lines === line.tick, 'its open file has a line for each tick');
      check(line.net === after[0]!.net, 'its network interface is as it was');
      check(line.disk !== 'bad', 'it reads from its disk what it wrote');
    });
  }

  /** Restores it under another name and uuid, lets it count on, and takes it away again. */
  async restoreAs(taken: Taken, name: string): Promise<void> {
    const manifest = await this.repository.find(taken.id);
    const result = await restoreCheckpoint(
      { repository: this.repository, hypervisors: hypervisors(), manifest },
      { paused: true, keepDisks: !this.#withDisks },
      { newName: name },
    );
    check(result.vmAddress === `xen:${name}` && !result.running, 'it has the new name and is paused');
    xl('unpause', name);
    const renamed = new XenGuest({ name });
    await renamed.waitFor((tick) => tick >= taken.tick + 2);
    this.#context.say(`${name} counts on from ${taken.tick}: ${JSON.stringify(renamed.ticks()[0])}`);
    renamed.destroy();
  }

  /** Restores it with its disks left as they are, of another time: the guest must notice. */
  async restoreOnOtherDisks({ id }: Taken): Promise<void> {
    const before = this.guest.ticks().length;
    const manifest = await this.repository.find(id);
    await restoreCheckpoint(
      { repository: this.repository, hypervisors: hypervisors(), manifest },
      { paused: false, keepDisks: true },
    );
    const after = await this.#ticksAfter(before, 5);
    check(after.at(-1)?.disk === 'bad', 'it notices that the disk is of another time');
  }

  /** Those printed since there were `before`, at least `count`. */
  async #ticksAfter(before: number, count: number): Promise<readonly Tick[]> {
    const until = Date.now() + 60_000;
    while (this.guest.ticks().length < before + count) {
      if (Date.now() > until)
        throw new Error(`no ticks after the restore: ${this.guest.console().slice(-800)}`);
      await sleep(200);
    }
    return this.guest.ticks().slice(before);
  }

  /** Types of libxc's records beside the pages, in order: which there are depends on the processor. */
  async stateRecords({ id }: Taken): Promise<readonly number[]> {
    const manifest = await this.repository.find(id);
    const { before, after } = decodeDeviceState(await this.repository.reader(manifest).deviceState());
    return [...before, ...after].map(({ type }) => type);
  }

  /** `xl save`'s own format, checked by Xen's own verifier. @returns bytes */
  async verifyExport({ id }: Taken): Promise<number> {
    const manifest = await this.repository.find(id);
    const path = join(this.#context.dir, `${id}.xl`);
    const bytes = await exportCheckpoint(
      { repository: this.repository, hypervisors: hypervisors(), manifest },
      { format: 'xl', path },
    );
    const said = execFileSync('/usr/lib/xen-4.17/bin/verify-stream-v2', ['-i', path, '-f', 'xl', '-v'], {
      encoding: 'utf8',
      env: { ...process.env, PYTHONPATH: '/usr/lib/xen-4.17/lib/python' },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#context.say(`verify-stream-v2: ${said.trim().split('\n').at(-1) ?? ''}`);
    execFileSync('rm', ['-f', path]);
    return bytes;
  }
}

/** What was imported or received carries no seal, and is trusted here. What has one must hold. */
function isUnsealed({ hostSeal }: Manifest): () => Promise<boolean> {
  return () => Promise.resolve(hostSeal === undefined);
}
