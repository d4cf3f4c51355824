/**
 * What `cairn/kvm-dirty-log` exports: KVM's dirty log for a VMM that makes its VM itself (docs/kvm.md,
 * examples/dirty-log-vmm).
 */

export { CAPABILITY, EXIT } from './constants.js';
export { KvmDevice, KvmMachine, KvmVcpu, type MemorySlot } from './device.js';
export { DirtyRing } from './dirty-ring.js';
export { KVM_DIRTY_LOG_KIND, KvmDirtyLogTracker, type KvmDirtyLogOptions } from './tracker.js';
export { DirtyBitmap } from '../../../../src/bitmap/dirty-bitmap.js';
export type { DirtyTracker, Harvest } from '../../../../src/hypervisor/dirty-tracker.js';
export { layOut, type MemoryLayout, type MemoryRegion } from '../../../../src/hypervisor/memory-layout.js';
export { PAGE_SIZE_BYTES } from '../../../../src/types.js';
