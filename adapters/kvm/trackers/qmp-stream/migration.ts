/**
 * Follows one outgoing migration by its events: the monitor is asked for nothing while the VM is stopped that
 * an event tells anyway. Through a monitor that hands no events on QEMU is asked instead, again and again.
 * Asking misses nothing: passes are counted, the state before the switchover lasts until Cairn ends it, and
 * those at the end last for good.
 */

import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

import { CheckpointError, isCheckpointError } from '../../../../src/errors.js';
import { blockersOf, refuseBlocked } from '../../../qemu/migration-blockers.js';
import { eventsOf, type Monitor, type QmpEvent } from '../../../qemu/monitor.js';
import { asNumber, asObject, asText } from '../../../qemu/qmp-json.js';

const DESCRIPTOR_NAME = 'cairn-stream';
const ENDED_BADLY = new Set(['failed', 'cancelled']);
/**
 * Limit for the last pages after the stop. It is longer than the largest memory takes; a QEMU that hangs must
 * not hang Cairn.
 */
const STEP_LIMIT_MS = 120_000;
/** States in which the VM does not run (MigrationStatus of qapi/migration.json). */
const STOPPED_IN = new Set(['pre-switchover', 'device', 'completed']);
/**
 * Rest between two questions, where there are no events: QEMU may stop the VM in between, and the pause is
 * longer by that.
 */
const SHORTEST_REST_MS = 1;
const LONGEST_REST_MS = 10;

export interface MigrationProgress {
  readonly remainingPages: number;
  readonly transferredBytes: number;
}

export class Migration {
  readonly #monitor: Monitor;
  /** Undefined where events do not come. */
  readonly #unsubscribe: (() => void) | undefined;
  readonly #startedAt = performance.now();
  readonly #seen = new Set<string>();
  #passes = 0;
  #stoppedAt: number | undefined;
  #broken: CheckpointError | undefined;
  #wake: (() => void)[] = [];
  /** Where events do not come: a moment at which the VM still ran. */
  #ranAt = this.#startedAt;

  private constructor(monitor: Monitor) {
    this.#monitor = monitor;
    this.#unsubscribe = eventsOf(monitor, (event) => this.#take(event));
  }

  /** @throws VM_UNSUPPORTED when QEMU does not migrate this VM, QMP_COMMAND when another migration is under way */
  static async start(monitor: Monitor, descriptor: number): Promise<Migration> {
    const migration = new Migration(monitor);
    try {
      await monitor.execute('getfd', { fdname: DESCRIPTOR_NAME }, { passDescriptor: descriptor });
      await monitor.execute('migrate', { uri: `fd:${DESCRIPTOR_NAME}` });
    } catch (error) {
      migration.close();
      // A monitor that stays open would keep the descriptor. Unknown to QEMU when it did not take it, or has
      // closed it.
      await monitor.execute('closefd', { fdname: DESCRIPTOR_NAME }).catch(() => undefined);
      if (isCheckpointError(error, 'QMP_COMMAND')) {
        refuseBlocked(blockersOf(await monitor.execute('query-migrate')));
      }
      throw error;
    }
    return migration;
  }

  /** Passes over the dirty bitmap so far; the first covers all memory. */
  get passes(): number {
    return this.#passes;
  }

  /**
   * When the VM was stopped, by whom ever, on the clock of `performance.now()`; without events rather too
   * early than too late.
   */
  get stoppedAt(): number | undefined {
    return this.#stoppedAt;
  }

  get isCompleted(): boolean {
    return this.#seen.has('completed');
  }

  /** The reading end has failed: whoever waits hears of it. */
  break(error: CheckpointError): void {
    this.#broken ??= error;
    this.#wakeAll();
  }

  async progress(): Promise<MigrationProgress> {
    const ram = asObject(asObject(await this.#monitor.execute('query-migrate')).ram);
    return {
      remainingPages: Math.ceil(asNumber(ram.remaining) / 4096),
      transferredBytes: asNumber(ram.transferred),
    };
  }

  /**
   * Waits for the next event that changes anything.
   * @throws TRACKER_FAILED when the migration has failed, INTERRUPTED
   */
  async news(signal?: AbortSignal): Promise<void> {
    if (!this.#hasFailed) await this.#nextEvent(signal);
    if (this.#hasFailed) throw await this.#failure();
  }

  /**
   * All but the last pages are out, the VM is stopped, its disks are still its own.
   * @throws as `news`, QMP_TIMEOUT
   */
  async reachSwitchover(): Promise<void> {
    await this.#reach('pre-switchover');
  }

  /** The last pages and the device state. @throws as `news`, QMP_TIMEOUT */
  async complete(): Promise<void> {
    await this.#monitor.execute('migrate-continue', { state: 'pre-switchover' });
    await this.#reach('completed');
  }

  /** Stops following. */
  close(): void {
    this.#unsubscribe?.();
  }

  get #hasFailed(): boolean {
    return this.#broken !== undefined || [...ENDED_BADLY].some((status) => this.#seen.has(status));
  }

  async #reach(status: string): Promise<void> {
    const until = performance.now() + STEP_LIMIT_MS;
    while (!this.#seen.has(status)) {
      if (this.#hasFailed) throw await this.#failure();
      if (performance.now() > until) {
        throw new CheckpointError('QMP_TIMEOUT', `the migration to Cairn does not reach "${status}"`, {
          retryable: true,
        });
      }
      await this.#nextEvent(undefined, until - performance.now());
    }
  }

  #take({ event, data }: QmpEvent): void {
    if (event === 'MIGRATION') this.#seen.add(asText(data.status));
    else if (event === 'MIGRATION_PASS') this.#passes = asNumber(data.pass);
    else if (event === 'STOP') this.#stoppedAt ??= performance.now();
    else return;
    this.#wakeAll();
  }

  /** Where events do not come. */
  async #ask(): Promise<void> {
    const askedAt = performance.now();
    const reply = asObject(await this.#monitor.execute('query-migrate'));
    const status = asText(reply.status);
    const ram = asObject(reply.ram);
    const passes = asNumber(ram['dirty-sync-count']);
    const isNew = !this.#seen.has(status) || passes > this.#passes;
    this.#seen.add(status);
    this.#passes = Math.max(this.#passes, passes);
    if (STOPPED_IN.has(status)) this.#stoppedAt ??= this.#ranAt;
    else this.#ranAt = askedAt;
    if (isNew) return;
    const bytesPerMs = asNumber(ram.transferred) / (performance.now() - this.#startedAt);
    const leftMs = asNumber(ram.remaining) / Math.max(1, bytesPerMs);
    await sleep(Math.min(LONGEST_REST_MS, Math.max(SHORTEST_REST_MS, leftMs / 2)));
  }

  #wakeAll(): void {
    for (const wake of this.#wake.splice(0)) wake();
  }

  async #nextEvent(signal?: AbortSignal, timeoutMs?: number): Promise<void> {
    signal?.throwIfAborted();
    if (this.#unsubscribe === undefined) {
      await this.#ask();
      signal?.throwIfAborted();
      return;
    }
    await new Promise<void>((resolve) => {
      const timer = timeoutMs === undefined ? undefined : setTimeout(() => done(), timeoutMs);
      const done = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', done);
        resolve();
      };
      this.#wake.push(done);
      signal?.addEventListener('abort', done, { once: true });
    });
    signal?.throwIfAborted();
  }

  /** @throws VM_GONE */
  async #failure(): Promise<CheckpointError> {
    const reply = asObject(await this.#monitor.execute('query-migrate'));
    const why = asText(reply['error-desc']);
    const isCancelled = this.#seen.has('cancelled');
    // The reader's end is the better reason, unless it only saw the connection end.
    if (this.#broken !== undefined && !isCancelled && !this.#seen.has('failed')) return this.#broken;
    return new CheckpointError(
      'TRACKER_FAILED',
      `the migration that streams memory to Cairn ${isCancelled ? 'was cancelled' : 'failed'}${why === '' ? '' : `: ${why}`}`,
      {
        hint: 'another tool may have cancelled it, or memory was resized: try again',
        retryable: true,
        ...(this.#broken === undefined ? {} : { cause: this.#broken }),
      },
    );
  }
}
