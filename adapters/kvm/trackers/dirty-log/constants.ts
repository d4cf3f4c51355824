/** Requests and structures of linux/kvm.h as used here; x86-64. Documentation/virt/kvm/api.rst. */

/** Arguments that are numbers travel in place of the pointer. */
export const REQUEST = {
  getApiVersion: 0xae00n,
  createVm: 0xae01n,
  checkExtension: 0xae03n,
  getVcpuMmapSize: 0xae04n,
  createVcpu: 0xae41n,
  /** struct kvm_dirty_log, 16 bytes. */
  getDirtyLog: 0x4010_ae42n,
  /** struct kvm_userspace_memory_region, 32 bytes. */
  setUserMemoryRegion: 0x4020_ae46n,
  run: 0xae80n,
  /** struct kvm_regs, 144 bytes. */
  setRegs: 0x4090_ae82n,
  /** struct kvm_sregs, 312 bytes. */
  getSregs: 0x8138_ae83n,
  setSregs: 0x4138_ae84n,
  /** struct kvm_enable_cap, 104 bytes. */
  enableCap: 0x4068_aea3n,
  /** struct kvm_clear_dirty_log, 24 bytes. */
  clearDirtyLog: 0xc018_aec0n,
  resetDirtyRings: 0xaec7n,
} as const;

export const API_VERSION = 12;

export const CAPABILITY = {
  memorySlots: 10,
  /** KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: a mask of the two flags below. */
  manualDirtyLogProtect: 168,
  /** Largest size of a ring in bytes. */
  dirtyLogRing: 192,
} as const;

/** KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE */
export const MANUAL_PROTECT_ENABLE = 1;
/** KVM_MEM_LOG_DIRTY_PAGES */
export const LOG_DIRTY_PAGES = 1;

/** struct kvm_dirty_gfn: u32 flags, u32 slot (address space in the upper half), u64 offset in pages. */
export const RING_ENTRY_BYTES = 16;
export const RING_ENTRY_DIRTY = 1;
export const RING_ENTRY_RESET = 2;
/** KVM_DIRTY_LOG_PAGE_OFFSET: where the ring begins in the mapping of a vCPU's descriptor. */
export const RING_PAGE_OFFSET = 64;

/** kvm_run.exit_reason, at byte 8. */
export const EXIT_REASON_OFFSET = 8;
export const EXIT = { halt: 5, dirtyRingFull: 31 } as const;
