import { readFileSync } from 'node:fs';

import { describe, expect, it } from '@jest/globals';

import { judgeEntry } from '../../adapters/kvm/trackers/soft-dirty/entries.js';
import { softDirtyKernelObstacle, softDirtyReport } from '../../adapters/kvm/trackers/soft-dirty/support.js';
import type { RamBlock } from '../../adapters/kvm/memory/ram-blocks.js';

/** High half of a pagemap entry with these bits, numbered as in the kernel's documentation. */
function entry(...bits: readonly number[]): number {
  return bits.reduce((high, bit) => high | (1 << (bit - 32)), 0);
}

const PRESENT = 63;
const SWAPPED = 62;
const FILE = 61;
const UFFD_WP = 57;
const EXCLUSIVE = 56;
const SOFT_DIRTY = 55;

describe('what a pagemap entry of anonymous memory says', () => {
  it.each([
    ['a page of its own with the bit', [PRESENT, EXCLUSIVE, SOFT_DIRTY], 'written'],
    ['a page of its own without the bit', [PRESENT, EXCLUSIVE], undefined],
    ['a swapped page with the bit', [SWAPPED, SOFT_DIRTY], 'written'],
    ['a swapped page without the bit', [SWAPPED], undefined],
    ['nothing: never touched, or taken away', [], 'absent'],
    ['nothing in a mapping that is new', [SOFT_DIRTY], 'absent'],
    ['the zero page, read after the page was taken away', [PRESENT], 'written'],
    ['the huge zero page', [PRESENT, FILE], 'absent'],
    ['what a userfaultfd left of a page that was taken away', [SWAPPED, UFFD_WP], 'written'],
  ])('%s', (_, bits, finding) => {
    expect(judgeEntry(entry(...bits))).toBe(finding);
  });
});

describe('whether the tracker can be used', () => {
  it('follows the kernel, which is asked and not guessed by its version', () => {
    const flags = readFileSync('/proc/self/smaps', 'latin1');
    // smaps lists the flag of a mapping that is new since the last clearing only where the kernel knows it.
    const knows = /^VmFlags:.*\bsd\b/m.test(flags);
    expect(softDirtyKernelObstacle() === undefined).toBe(knows);
  });

  it('is refused with the region at fault when guest memory is no private anonymous memory', () => {
    const shared = { id: 'pc.ram', backing: 'shared-memory' } as unknown as RamBlock;
    const report = softDirtyReport(process.pid, [shared]);
    expect(report).toMatchObject({ usable: false, kind: 'soft-dirty' });
    if (softDirtyKernelObstacle() === undefined) expect(report.reason).toContain('pc.ram');
  });
});
