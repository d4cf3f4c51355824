/**
 * A VMM that owns its VM: two memory slots, one vCPU with the small guest, and Cairn's tracker on KVM's dirty
 * log.
 *
 * The order of calls is the kernel's: what changes how the log works comes first (rings before the first
 * vCPU, manual protection before a slot logs), then memory, then vCPUs, then the tracker, which knows all of
 * them.
 */

import {
  CAPABILITY,
  DirtyBitmap,
  KvmDevice,
  KvmDirtyLogTracker,
  layOut,
  PAGE_SIZE_BYTES,
  type KvmMachine,
} from 'cairn/kvm-dirty-log';

import { guestMemory, OWN_PAGES, SmallGuest, type GuestMemory } from './small-guest.js';

export type LogMode = 'bitmap' | 'manual-protect' | 'ring';

export const LOW_PAGES = 1000;
export const HIGH_PAGES = 200;
const HIGH_AT = 0x1000_0000;
/** Entries for all pages of the machine. */
const RING_BYTES = 32 << 10;

/** What this kernel has; dirty rings since 5.11. @throws KVM_UNAVAILABLE */
export function logModes(): readonly LogMode[] {
  const device = KvmDevice.open();
  try {
    return [
      'bitmap',
      ...(device.capability(CAPABILITY.manualDirtyLogProtect) > 0 ? (['manual-protect'] as const) : []),
      ...(device.capability(CAPABILITY.dirtyLogRing) > 0 ? (['ring'] as const) : []),
    ];
  } finally {
    device.close();
  }
}

/**
 * Why it cannot run here; empty when it can. A KVM may be there and still run no guest, as inside some
 * virtual machines.
 */
export function whyNoKvmLog(): string {
  try {
    const vmm = new DirtyLogVmm('bitmap');
    try {
      vmm.guest.write([OWN_PAGES * PAGE_SIZE_BYTES], 1);
      return '';
    } finally {
      vmm.close();
    }
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

export class DirtyLogVmm {
  readonly machine: KvmMachine;
  readonly low: GuestMemory;
  readonly high: GuestMemory;
  readonly guest: SmallGuest;
  readonly tracker: KvmDirtyLogTracker;
  readonly layout = layOut([
    { id: 'low', sizeBytes: LOW_PAGES * PAGE_SIZE_BYTES },
    { id: 'high', sizeBytes: HIGH_PAGES * PAGE_SIZE_BYTES },
  ]);
  #value = 0;

  constructor(mode: LogMode, ringBytes = RING_BYTES) {
    const device = KvmDevice.open();
    try {
      this.machine = device.createVm();
    } finally {
      device.close();
    }
    if (mode === 'manual-protect') this.machine.useManualProtect();
    if (mode === 'ring') this.machine.useDirtyRings(ringBytes);
    this.low = guestMemory(0, 0n, LOW_PAGES);
    this.high = guestMemory(1, BigInt(HIGH_AT), HIGH_PAGES);
    for (const { slot } of [this.low, this.high]) this.machine.setMemory(slot);
    this.guest = new SmallGuest(this.machine, this.low);
    this.tracker = new KvmDirtyLogTracker({
      machine: this.machine,
      layout: this.layout,
      slots: [this.low.slot, this.high.slot],
      vcpus: [this.guest.vcpu],
    });
  }

  /**
   * Has the guest write to these pages of the layout. Returns what a tracker collected meanwhile, for a full
   * ring.
   */
  write(pages: readonly number[]): DirtyBitmap {
    const collected = new DirtyBitmap(this.layout.pageSpan);
    const { firstPage } = this.layout.regions[1]!;
    const value = ++this.#value;
    const addresses = pages.map((page) => {
      const base = page < firstPage ? page * PAGE_SIZE_BYTES : HIGH_AT + (page - firstPage) * PAGE_SIZE_BYTES;
      return base + ((page * 52 + value * 4) % PAGE_SIZE_BYTES);
    });
    this.guest.write(addresses, value, () => collected.or(this.tracker.collect().dirty));
    return collected;
  }

  close(): void {
    this.tracker.close();
    this.guest.vcpu.close();
    this.machine.close();
  }
}

/**
 * Pages of a harvest that the guest may write. Code and list are only read, but KVM maps pages writable where
 * it may, and logs them then.
 */
export function guestPagesOf(bitmap: DirtyBitmap): readonly number[] {
  const runs = bitmap.toRuns();
  const pages: number[] = [];
  for (let i = 0; i < runs.length; i += 2)
    for (let page = runs[i]!; page < runs[i]! + runs[i + 1]!; page++) pages.push(page);
  return pages.filter((page) => page >= OWN_PAGES);
}
