/**
 * The time for which one checkpoint has the VM stand still.
 *
 *     stop -> what the checkpoint does in the pause -> letGo -> thaw
 *
 * It ends at its limit, or when the checkpoint is called off, whatever is under way at that moment: the VM goes
 * on at once, and what was under way is waited for after that. A process beside this one does the same when
 * this one hangs (`PauseControl.pause`).
 *
 * Whatever fails on the way, the VM is left in the run state it was found in, and its guest thawed. A VM left
 * paused is worse than a guest left frozen, and both are worse than a checkpoint that fails: errors are
 * reported in this order.
 */

import { CheckpointError, isCheckpointError } from '../../errors.js';
import { formatInterval } from '../../text.js';
import type { PauseControl, VmRunState } from '../../hypervisor/run-state.js';
import type { Freeze } from './freeze.js';
import { Stopwatch } from './stopwatch.js';

export interface StandstillDeps {
  readonly vm: { readonly address: string; readonly runState: Pick<VmRunState, 'read'> };
  /** Stops the VM and lets it go on. */
  readonly control: PauseControl;
  readonly freeze: Freeze;
  /** For how long the VM may stand still. */
  readonly limitMs: number;
  /** Calls the checkpoint off. */
  readonly signal: AbortSignal | undefined;
}

export class Standstill {
  /** Runs from the request to stop until the VM runs again. */
  readonly watch = new Stopwatch();
  readonly #deps: StandstillDeps;
  readonly #over = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  #wasRunning = false;
  #isLetGo = false;

  constructor(deps: StandstillDeps) {
    this.#deps = deps;
  }

  /** The VM ran when it was to be stopped. */
  get wasRunning(): boolean {
    return this.#wasRunning;
  }

  /** 0 for a VM that was found paused. */
  get pauseMs(): number {
    return this.#wasRunning ? this.watch.elapsedMs() : 0;
  }

  /** Aborted when the pause ends before its time: work that can be called off goes by it. */
  get signal(): AbortSignal {
    return this.#over.signal;
  }

  /**
   * @param work stops the VM and lets it go on; when it fails in between, the VM goes on all the same
   * @throws VM_NOT_RESUMED, GUEST_FROZEN, PAUSE_LIMIT, the signal's reason, what `work` throws
   */
  async during(work: () => Promise<void>): Promise<void> {
    const { freeze } = this.#deps;
    const working = work();
    try {
      await Promise.race([working, this.#ended()]);
    } catch (error) {
      let cause = this.#isLetGo ? error : await this.#goOnAfter(error);
      try {
        await freeze.thaw();
      } finally {
        await working.catch(() => undefined);
      }
      // What was under way may have been about to stop the VM.
      if (this.signal.aborted) cause = await this.#goOnAfter(cause);
      throw cause;
    } finally {
      this.#disarm();
    }
    await freeze.thaw();
  }

  /** Stops the VM, which runs until it is asked to. */
  async stop(): Promise<void> {
    const { control, limitMs } = this.#deps;
    const { slowestStopMs = 0 } = control;
    this.#listen();
    const stopping = (): void => {
      this.watch.start();
      this.#arm(limitMs + slowestStopMs);
    };
    this.#wasRunning = await control.pause({ stopping, limitMs });
    this.watch.since('stop', 0);
    if (slowestStopMs > 0) this.#arm(limitMs);
    this.signal.throwIfAborted();
  }

  /** Stops the VM, unless it stands still already; the watch says since when. */
  async finishStop(): Promise<void> {
    const { control, limitMs } = this.#deps;
    const from = this.watch.elapsedMs();
    this.#listen();
    this.#arm(Math.max(0, limitMs - from));
    this.#wasRunning = await control.pause({ limitMs });
    this.watch.since('stop', from);
    this.signal.throwIfAborted();
  }

  /**
   * The VM goes on, unless it was found paused.
   * @throws VM_NOT_RESUMED, VM_STATE when somebody else has resumed it meanwhile, PAUSE_LIMIT
   */
  async letGo(): Promise<void> {
    const { vm, control } = this.#deps;
    this.signal.throwIfAborted();
    this.#isLetGo = true;
    this.#disarm();
    if (!this.#wasRunning) {
      await stillPaused(vm);
      return;
    }
    const resuming = this.watch.elapsedMs();
    await resumeOnceMore(control, () => this.watch.stop());
    this.watch.stop();
    this.watch.since('resume', resuming);
  }

  readonly #onAbort = (): void => this.#over.abort(this.#deps.signal?.reason);

  #arm(limitMs: number): void {
    const { vm } = this.#deps;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#over.abort(tooLong(vm.address, this.#deps.limitMs)), limitMs);
  }

  #listen(): void {
    const { signal } = this.#deps;
    signal?.addEventListener('abort', this.#onAbort, { once: true });
    if (signal?.aborted === true) this.#onAbort();
  }

  #disarm(): void {
    clearTimeout(this.#timer);
    this.#deps.signal?.removeEventListener('abort', this.#onAbort);
  }

  /** Rejects when the pause ends before its time. */
  #ended(): Promise<never> {
    const { signal } = this;
    return new Promise((_, reject) => {
      const end = (): void => reject(signal.reason as Error);
      signal.addEventListener('abort', end, { once: true });
      if (signal.aborted) end();
    });
  }

  /** @returns what the checkpoint fails with. @throws VM_NOT_RESUMED with the guest thawed, if that can be */
  async #goOnAfter(cause: unknown): Promise<unknown> {
    const { vm, control, freeze } = this.#deps;
    try {
      return await resumeAfterFailure(vm.address, control, cause);
    } catch (notResumed) {
      // The guest cannot thaw while it stands still, and that it stands still is the worse news.
      await freeze.thaw().catch(() => undefined);
      throw notResumed;
    }
  }
}

function tooLong(address: string, limitMs: number): CheckpointError {
  return new CheckpointError(
    'PAUSE_LIMIT',
    `the pause of ${address} went on for ${formatInterval(limitMs)}, so it was ended; the VM runs`,
    {
      hint: 'the checkpoint is dropped; find out what took so long, or allow more with --pause-limit',
      retryable: true,
      detail: { limitMs },
    },
  );
}

/**
 * A VM that was found paused may be resumed by its owner at any moment, and what was read is then not of one
 * moment.
 */
async function stillPaused(vm: StandstillDeps['vm']): Promise<void> {
  if ((await vm.runState.read()) === 'paused') return;
  throw new CheckpointError('VM_STATE', `the VM ${vm.address} was resumed while its checkpoint was taken`, {
    hint: 'the checkpoint is dropped; take another',
    retryable: true,
  });
}

/** A VM left paused is worse than a late one: what fails for want of an answer is asked for a second time. */
async function resumeOnceMore(control: PauseControl, running?: () => void): Promise<void> {
  try {
    await control.resume(running);
  } catch (error) {
    if (isOver(error)) throw error;
    await control.resume(running);
  }
}

/** Gone, or resumed by somebody else: there is nothing left to resume. */
function isOver(error: unknown): boolean {
  return (['VM_GONE', 'VM_STATE', 'PAUSE_LIMIT'] as const).some((code) => isCheckpointError(error, code));
}

/**
 * Resumes a VM that this checkpoint paused. When that fails too, the failure to resume is what matters most.
 * @returns what the checkpoint fails with
 */
async function resumeAfterFailure(address: string, control: PauseControl, cause: unknown): Promise<unknown> {
  try {
    await resumeOnceMore(control);
    return cause;
  } catch (error) {
    // Whatever failed did so because the guard had cut it off.
    if (isCheckpointError(error, 'PAUSE_LIMIT')) return error;
    if (isOver(error)) return cause;
    const known = isCheckpointError(error, 'VM_NOT_RESUMED') ? error : undefined;
    throw new CheckpointError(
      'VM_NOT_RESUMED',
      `the VM ${address} was paused for a checkpoint and could not be resumed${known === undefined ? '' : `: ${known.message}`}`,
      {
        cause: isCheckpointError(cause) ? cause : error,
        hint: known?.hint ?? 'resume it by hand: `cont` in the QEMU monitor, or `virsh resume`',
      },
    );
  }
}
