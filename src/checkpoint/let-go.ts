/**
 * Ends the tracking that Cairn leaves armed in a running VM between checkpoints. While it is armed, others cannot use
 * what it uses: QEMU refuses its own background-snapshot, and Xen's log of dirty pages has one reader.
 */

import { VmLock } from '../host/vm-lock.js';
import type { Vm } from '../hypervisor/vm.js';

/**
 * @param vm stays the caller's
 * @returns the kinds of trackers that were armed, none when there was nothing to end; the next checkpoint reads all
 *   memory
 * @throws VM_LOCKED while somebody takes checkpoints of it, TRACKER_UNAVAILABLE, TRACKER_FAILED, VM_GONE, VM_PERMISSION
 */
export async function letGo(vm: Vm, runtimeDir: string): Promise<readonly string[]> {
  const lock = await VmLock.take(vm, runtimeDir);
  try {
    const { trackers } = await vm.inspect();
    const armed = trackers.filter(({ armed: isArmed }) => isArmed === true).map(({ kind }) => kind);
    if (armed.length > 0) await vm.memory.layout();
    for (const kind of armed) {
      const tracker = vm.memory.tracker(kind);
      try {
        // What it takes over it can end, too.
        await tracker.start();
        await tracker.stop();
      } finally {
        tracker.close();
      }
    }
    return armed;
  } finally {
    await lock.release();
  }
}
