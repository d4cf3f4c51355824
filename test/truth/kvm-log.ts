/**
 * KVM's dirty log, with and without manual protection, and its dirty rings, each against what the guest was told to write and
 * against what changed in memory. Throws at the first thing that is not so; needs a /dev/kvm that runs a guest of ten bytes.
 */

import { CAPABILITY } from '../../adapters/kvm/trackers/dirty-log/constants.js';
import { KvmDevice, type KvmMachine } from '../../adapters/kvm/trackers/dirty-log/device.js';
import { KvmDirtyLogTracker } from '../../adapters/kvm/trackers/dirty-log/tracker.js';
import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { layOut } from '../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../src/types.js';
import { guestMemory, OWN_PAGES, SmallGuest, type GuestMemory } from './small-guest.js';

export type LogMode = 'bitmap' | 'manual-protect' | 'ring';

const LOW_PAGES = 1000;
const HIGH_PAGES = 200;
const HIGH_AT = 0x1000_0000;
const ROUNDS = 20;
/** Entries for all pages of the machine. */
const RING_BYTES = 32 << 10;
/** A quarter of a page list that fills it. */
export const SMALL_RING_BYTES = 4096;

/** Why it cannot run here; empty when it can. */
export function whyNoKvmLog(): string {
  try {
    const lab = new LogLab('bitmap');
    try {
      lab.guest.write([OWN_PAGES * PAGE_SIZE_BYTES], 1);
      return '';
    } finally {
      lab.close();
    }
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

export function hasRings(): boolean {
  const device = KvmDevice.open();
  try {
    return device.capability(CAPABILITY.dirtyLogRing) > 0;
  } finally {
    device.close();
  }
}

/** A machine of two memory slots, a small guest in it, and a tracker. */
export class LogLab {
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

  /** Has the guest write to these pages of the layout. Returns what a tracker collected meanwhile, for a full ring. */
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

  memory(): readonly Uint8Array[] {
    return [this.low.bytes.slice(), this.high.bytes.slice()];
  }

  /** Pages in which memory differs from what it was, without those that only we write. */
  changedSince(before: readonly Uint8Array[]): readonly number[] {
    const found: number[] = [];
    [this.low, this.high].forEach(({ bytes }, i) => {
      const { firstPage, pageCount } = this.layout.regions[i]!;
      for (let page = i === 0 ? OWN_PAGES : 0; page < pageCount; page++) {
        const from = page * PAGE_SIZE_BYTES;
        const now = bytes.subarray(from, from + PAGE_SIZE_BYTES);
        if (Buffer.compare(now, before[i]!.subarray(from, from + PAGE_SIZE_BYTES)) !== 0)
          found.push(firstPage + page);
      }
    });
    return found;
  }

  /** Distinct pages that the guest may write, from both regions. 101 is prime, so the walk reaches all. */
  somePages(round: number, count: number): readonly number[] {
    const { firstPage } = this.layout.regions[1]!;
    const all = LOW_PAGES - OWN_PAGES + HIGH_PAGES;
    const pages = new Set<number>();
    for (let i = 0; pages.size < count; i++) {
      const k = (round * 7919 + i * 101) % all;
      pages.add(k < LOW_PAGES - OWN_PAGES ? OWN_PAGES + k : firstPage + k - (LOW_PAGES - OWN_PAGES));
    }
    return [...pages].sort((a, b) => a - b);
  }

  close(): void {
    this.tracker.close();
    this.guest.vcpu.close();
    this.machine.close();
  }
}

/**
 * Pages of a harvest that the guest may write. Code and list are only read, but KVM maps pages writable where it may, and logs them
 * then.
 */
export function guestPagesOf(bitmap: DirtyBitmap): readonly number[] {
  const runs = bitmap.toRuns();
  const pages: number[] = [];
  for (let i = 0; i < runs.length; i += 2)
    for (let page = runs[i]!; page < runs[i]! + runs[i + 1]!; page++) pages.push(page);
  return pages.filter((page) => page >= OWN_PAGES);
}

/** Rounds of writes; what the log names must be what was written, and what changed. @returns faults in words */
export function logFaults(mode: LogMode): readonly string[] {
  const lab = new LogLab(mode);
  try {
    void lab.tracker.start();
    const faults: string[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const before = lab.memory();
      const written = lab.somePages(round, 1 + ((round * 53) % 700));
      const found = lab.write(written);
      found.or(lab.tracker.collect().dirty);
      const named = guestPagesOf(found);
      const about = `${mode}, round ${round}`;
      faults.push(...differences(`${about}: the log and what was written`, named, written));
      faults.push(...differences(`${about}: the log and what changed`, named, lab.changedSince(before)));
    }
    return faults;
  } finally {
    lab.close();
  }
}

/** All modes that this kernel has. */
export function kvmLogFaults(): readonly string[] {
  const modes: readonly LogMode[] = hasRings()
    ? ['bitmap', 'manual-protect', 'ring']
    : ['bitmap', 'manual-protect'];
  return modes.flatMap(logFaults);
}

function differences(
  about: string,
  named: readonly number[],
  expected: readonly number[],
): readonly string[] {
  const missing = expected.filter((page) => !named.includes(page));
  const surplus = named.filter((page) => !expected.includes(page));
  if (missing.length + surplus.length === 0) return [];
  const some = (pages: readonly number[]): string => `${pages.length} (${pages.slice(0, 5).join(' ')})`;
  return [`${about} differ: missing ${some(missing)}, surplus ${some(surplus)} of ${expected.length}`];
}
