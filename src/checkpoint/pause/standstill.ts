/**
 * The time for which one checkpoint has the VM stand still.
 *
 *     stop -> what the checkpoint does in the pause -> letGo -> thaw
 *
 * Whatever fails on the way, the VM is left in the run state it was found in, and its guest thawed. A VM left
 * paused is worse than a guest left frozen, and both are worse than a checkpoint that fails: errors are
 * reported in this order.
 */

import { CheckpointError, isCheckpointError } from '../../errors.js';
import type { PauseControl, VmRunState } from '../../hypervisor/run-state.js';
import type { Freeze } from './freeze.js';
import { Stopwatch } from './stopwatch.js';

export interface StandstillDeps {
  readonly vm: { readonly address: string; readonly runState: Pick<VmRunState, 'read'> };
  /** Stops the VM and lets it go on. */
  readonly control: PauseControl;
  readonly freeze: Freeze;
}

export class Standstill {
  /** Runs from the request to stop until the VM runs again. */
  readonly watch = new Stopwatch();
  readonly #deps: StandstillDeps;
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

  /**
   * @param work stops the VM and lets it go on; when it fails in between, the VM goes on all the same
   * @throws VM_NOT_RESUMED, GUEST_FROZEN, what `work` throws
   */
  async during(work: () => Promise<void>): Promise<void> {
    const { vm, control, freeze } = this.#deps;
    try {
      await work();
    } catch (error) {
      // `resume` leaves a VM alone that `pause` did not stop.
      if (!this.#isLetGo) {
        await resumeAfterFailure(vm.address, control, error).catch(async (notResumed: unknown) => {
          // The guest cannot thaw while it stands still, and that it stands still is the worse news.
          await freeze.thaw().catch(() => undefined);
          throw notResumed;
        });
      }
      await freeze.thaw();
      throw error;
    }
    await freeze.thaw();
  }

  /** Stops the VM, which runs until it is asked to. */
  async stop(): Promise<void> {
    this.#wasRunning = await this.#deps.control.pause(() => this.watch.start());
    this.watch.since('stop', 0);
  }

  /** Stops the VM, unless it stands still already; the watch says since when. */
  async finishStop(): Promise<void> {
    const from = this.watch.elapsedMs();
    this.#wasRunning = await this.#deps.control.pause();
    this.watch.since('stop', from);
  }

  /**
   * The VM goes on, unless it was found paused.
   * @throws VM_NOT_RESUMED, VM_STATE when somebody else has resumed it meanwhile
   */
  async letGo(): Promise<void> {
    const { vm, control } = this.#deps;
    this.#isLetGo = true;
    if (!this.#wasRunning) {
      await stillPaused(vm);
      return;
    }
    const resuming = this.watch.elapsedMs();
    await resumeOnceMore(control, () => this.watch.stop());
    this.watch.stop();
    this.watch.since('resume', resuming);
  }
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
    if (isCheckpointError(error, 'VM_GONE') || isCheckpointError(error, 'VM_STATE')) throw error;
    await control.resume(running);
  }
}

/**
 * Resumes a VM that this checkpoint paused. When that fails too, the failure to resume is what matters most.
 */
async function resumeAfterFailure(address: string, control: PauseControl, cause: unknown): Promise<void> {
  try {
    await resumeOnceMore(control);
  } catch (error) {
    // Gone, or resumed by somebody else: there is nothing left to resume.
    if (isCheckpointError(error, 'VM_GONE') || isCheckpointError(error, 'VM_STATE')) return;
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
