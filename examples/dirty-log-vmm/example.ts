/**
 * What a VMM does with the tracker between two checkpoints: the guest writes, the dirty pages are collected,
 * a checkpoint that fails puts them back, and the next collection has them again with what was written since.
 */

import { DirtyLogVmm, guestPagesOf, logModes } from './vmm.js';

const FIRST = [20, 21, 999];
const SECOND = [21, 500];

/** @returns true when each way found exactly what the guest wrote */
export async function runExample(print: (line: string) => void): Promise<boolean> {
  let isExact = true;
  for (const mode of logModes()) {
    const vmm = new DirtyLogVmm(mode);
    try {
      await vmm.tracker.start();
      const first = vmm.write(FIRST);
      first.or(vmm.tracker.collect().dirty);
      // The checkpoint of these pages is not durable: they are owed.
      vmm.tracker.putBack(first);
      const both = vmm.write(SECOND);
      both.or(vmm.tracker.collect().dirty);
      const left = vmm.tracker.collect().dirty;
      await vmm.tracker.stop();
      const found = [first, both, left].map(guestPagesOf);
      const written = [FIRST, [...new Set([...FIRST, ...SECOND])], []];
      const isRight = written.every(
        (pages, i) => String(found[i]) === String([...pages].sort((a, b) => a - b)),
      );
      print(
        `${mode}: ${found.map((pages) => `[${pages.join(' ')}]`).join(', ')}${isRight ? '' : ', which is wrong'}`,
      );
      isExact &&= isRight;
    } finally {
      vmm.close();
    }
  }
  return isExact;
}
