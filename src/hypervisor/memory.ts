/**
 * The part of a VM's contract that says where its memory lies, who reads it, and who knows which pages
 * changed.
 */

import type { DirtyTracker } from './dirty-tracker.js';
import type { GuestReaderDescription } from './guest-reader.js';
import type { MemoryLayout } from './memory-layout.js';

export interface VmMemory {
  /**
   * The present regions. Asks the hypervisor anew each time: blocks come and go with hotplug.
   * @throws VM_GONE
   */
  layout(): Promise<MemoryLayout>;
  /** How a worker reads this VM's memory, for the layout last returned. @throws VM_PERMISSION */
  reader(): GuestReaderDescription;
  /**
   * A tracker of that kind for the layout last returned, not started yet.
   * @throws TRACKER_UNAVAILABLE for a kind that is not known or cannot be used
   */
  tracker(kind: string): DirtyTracker;
}
