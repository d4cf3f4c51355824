/** The disk snapshots of one checkpoint, taken in its pause. */

import type { DiskPlan } from '../../disks/disk-plan.js';
import type { DiskSnapshot, VmDisks } from '../../hypervisor/disks.js';
import type { Stopwatch } from './stopwatch.js';

export class PauseSnapshots {
  readonly #disks: VmDisks;
  #taken: readonly DiskSnapshot[] = [];

  constructor(disks: VmDisks) {
    this.#disks = disks;
  }

  /** Also of a pause that failed later on. */
  get taken(): readonly DiskSnapshot[] {
    return this.#taken;
  }

  /** @param over aborted when the pause has ended: no further one is taken. @throws DISK_SNAPSHOT_FAILED */
  async take(plan: DiskPlan, checkpointId: string, watch: Stopwatch, over: AbortSignal): Promise<void> {
    for (const { disks, driver } of plan) {
      over.throwIfAborted();
      const taken = await watch.time('disks', () => this.#disks.snapshot(checkpointId, disks, driver));
      this.#taken = [...this.#taken, ...taken];
    }
  }
}
