/**
 * One outgoing migration, followed by its events: the monitor is asked for nothing while the VM is stopped that an event
 * tells anyway.
 */

import { performance } from 'node:perf_hooks';

import { CheckpointError } from '../../../src/errors.js';
import type { Monitor, QmpEvent } from '../monitor.js';
import { asNumber, asObject, asText } from '../qmp-json.js';

const DESCRIPTOR_NAME = 'cairn-stream';
const ENDED_BADLY = new Set(['failed', 'cancelled']);
/** For the last pages after the stop. Longer than the largest memory takes; a QEMU that hangs must not hang Cairn. */
const STEP_LIMIT_MS = 120_000;

export interface MigrationProgress {
  readonly remainingPages: number;
  readonly transferredBytes: number;
}

export class Migration {
  readonly #monitor: Monitor;
  readonly #unsubscribe: () => void;
  readonly #seen = new Set<string>();
  #passes = 0;
  #stoppedAt: number | undefined;
  #broken: CheckpointError | undefined;
  #wake: (() => void)[] = [];

  private constructor(monitor: Monitor) {
    this.#monitor = monitor;
    this.#unsubscribe = monitor.onEvent((event) => this.#take(event));
  }

  /** @throws QMP_COMMAND when QEMU does not migrate this VM, or another migration is under way */
  static async start(monitor: Monitor, descriptor: number): Promise<Migration> {
    const migration = new Migration(monitor);
    try {
      await monitor.execute('getfd', { fdname: DESCRIPTOR_NAME }, { passDescriptor: descriptor });
      await monitor.execute('migrate', { uri: `fd:${DESCRIPTOR_NAME}` });
    } catch (error) {
      migration.#unsubscribe();
      throw error;
    }
    return migration;
  }

  /** Passes over the dirty bitmap so far; the first covers all memory. */
  get passes(): number {
    return this.#passes;
  }

  /** When the VM was stopped, by whom ever, on the clock of `performance.now()`. */
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

  /** Waits for the next event that changes anything. @throws TRACKER_FAILED when the migration has failed, INTERRUPTED */
  async news(signal?: AbortSignal): Promise<void> {
    if (!this.#hasFailed) await this.#nextEvent(signal);
    if (this.#hasFailed) throw await this.#failure();
  }

  /** All but the last pages are out, the VM is stopped, its disks are still its own. @throws as `news`, QMP_TIMEOUT */
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
    this.#unsubscribe();
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

  #wakeAll(): void {
    for (const wake of this.#wake.splice(0)) wake();
  }

  async #nextEvent(signal?: AbortSignal, timeoutMs?: number): Promise<void> {
    signal?.throwIfAborted();
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
