/** What a manager that holds the monitor of a VM adds to a stream of it: `adapters/libvirt/qemu/stream-manager.ts`. */

import type { GuardProgram } from '../../../guard/pause-guard.js';

export interface StreamManager {
  /** Before anything is changed. @throws VM_STATE, retryable, while the manager is busy with the VM */
  readonly ready: () => Promise<void>;
  /** Of a VM that stands still: nobody's wish but the migration's own is behind it. */
  readonly isStoppedByMigration: () => Promise<boolean>;
  /** Ends the stream when Cairn dies; by way of the manager. */
  readonly guard: (markerPath: string) => GuardProgram;
}
