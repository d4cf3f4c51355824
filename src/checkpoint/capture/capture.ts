/**
 * Capture: what one checkpoint does between its first harvest and its last encoded page. There are two ways.
 *
 *     copying (copying.ts)    Cairn reads guest memory: live rounds, then copies in the pause
 *     picture (picture.ts)    the hypervisor sends guest memory, and Cairn reads what was sent once the VM
 *                             runs again
 *
 * What is harvested is owed until the manifest is durable: any failure gives it back to the tracker. The VM
 * is left in the run state it was found in, on every path.
 */

import type { DirtyBitmap } from '../../bitmap/dirty-bitmap.js';
import type { DiskPlan } from '../../disks/disk-plan.js';
import type { DirtyTracker } from '../../hypervisor/dirty-tracker.js';
import type { DiskSnapshot } from '../../hypervisor/disks.js';
import type { MemoryLayout } from '../../hypervisor/memory-layout.js';
import type { Vm } from '../../hypervisor/vm.js';
import type { SharePool } from '../../pool/share-pool.js';
import type { PageWriter } from '../pages/page-writer.js';
import type { Captured } from '../pause/captured.js';
import type { Hook, HookContext } from '../pause/hooks.js';
import type { StopPolicy } from '../pause/stop-policy.js';
import type { CheckpointProgress } from '../progress.js';
import type { Scope } from '../trust/scope.js';

export interface CaptureDeps {
  readonly vm: Vm;
  readonly tracker: DirtyTracker;
  readonly layout: MemoryLayout;
  readonly scope: Scope;
  readonly pool: SharePool;
  readonly pages: PageWriter;
  readonly markZero: (pages: Uint32Array) => void;
  readonly policy: StopPolicy;
  readonly hook: Hook | undefined;
  readonly hookContext: HookContext;
  /** Freeze the guest's file systems for the pause, with this limit; undefined: do not. */
  readonly freezeLimitMs: number | undefined;
  /** For how long the VM may stand still. */
  readonly pauseLimitMs: number;
  /** Pages that each share has room for in the pause, at least: see `PauseRoom`. */
  readonly roomPages: number;
  /**
   * Proves, once the VM runs again, that regions and devices are still those that the session opened its
   * tracker for.
   * @throws VM_STATE when they are not
   */
  readonly checkUnchanged: () => Promise<void>;
  /**
   * Asked right before the VM is paused.
   * @throws REPO_LOCKED when the lock of the chain is lost, so that the checkpoint could not be committed
   */
  readonly mayPause: () => Promise<void>;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: (progress: CheckpointProgress) => void;
}

export interface Checked {
  /**
   * `checkUnchanged`, under way: the checkpoint must not be committed before it is settled, nor when it
   * fails.
   */
  readonly unchanged: Promise<void>;
}

export interface Capture {
  /** Everything collected so far, to be put back when the checkpoint fails. */
  readonly harvested: DirtyBitmap;
  /** Disk snapshots taken so far, to be dropped when the checkpoint fails. */
  readonly snapshots: readonly DiskSnapshot[];
  run(diskPlan: DiskPlan): Promise<Captured & Checked>;
}

/**
 * Begins to ask while pages are encoded and written. Whoever commits waits for the answer; until then its
 * failure must not count as unhandled.
 */
export function startCheck(checkUnchanged: () => Promise<void>): Promise<void> {
  const unchanged = checkUnchanged();
  unchanged.catch(() => undefined);
  return unchanged;
}
