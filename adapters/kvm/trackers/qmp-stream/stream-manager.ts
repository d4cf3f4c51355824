/**
 * What a manager that holds the monitor of a VM adds to a stream of it:
 * `adapters/libvirt/qemu/stream-manager.ts`.
 */

import type { GuardProgram } from '../../../guard/pause-guard.js';

export interface StreamManager {
  /** Called before anything is changed. @throws VM_STATE, retryable, while the manager is busy with the VM */
  readonly ready: () => Promise<void>;
  /** Tells whether a VM stands still because of the migration, and of nobody else's wish. */
  readonly isStoppedByMigration: () => Promise<boolean>;
  /** Ends the stream when Cairn dies; by way of the manager. */
  readonly guard: (markerPath: string) => GuardProgram;
}
