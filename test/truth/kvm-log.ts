/**
 * KVM's dirty log, with and without manual protection, and its dirty rings, each against what the guest was told to write and
 * against what changed in memory. Throws at the first thing that is not so; needs a /dev/kvm that runs a guest of ten bytes.
 */

import { PAGE_SIZE_BYTES } from '../../src/types.js';
import {
  DirtyLogVmm,
  guestPagesOf,
  HIGH_PAGES,
  logModes,
  LOW_PAGES,
  type LogMode,
} from '../../examples/dirty-log-vmm/vmm.js';
import { OWN_PAGES } from '../../examples/dirty-log-vmm/small-guest.js';

const ROUNDS = 20;
/** A quarter of a page list that fills it. */
export const SMALL_RING_BYTES = 4096;

/** The VMM of the example, and what the truth about its memory is. */
export class LogLab extends DirtyLogVmm {
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
  return logModes().flatMap(logFaults);
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
