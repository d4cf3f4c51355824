/** A hypervisor whose trackers miss pages, to show that an oracle notices. */

import { DirtyBitmap } from '../../../src/bitmap/dirty-bitmap.js';
import type { DirtyTracker } from '../../../src/hypervisor/dirty-tracker.js';
import type { Hypervisor } from '../../../src/hypervisor/hypervisor.js';
import type { Vm } from '../../../src/hypervisor/vm.js';
import { instead } from './instead.js';

/** Of every so many dirty pages one is not reported. */
const KEEPS_ONE_IN = 8;

export function tampered(hypervisor: Hypervisor, tampering: { readonly isOn: boolean }): Hypervisor {
  return instead(hypervisor, {
    attach: async (address, options) => {
      const vm: Vm = await hypervisor.attach(address, options);
      const tracker = (kind: string): DirtyTracker => lossy(vm.memory.tracker(kind), tampering);
      return instead(vm, { memory: instead(vm.memory, { tracker }) });
    },
  });
}

function lossy(tracker: DirtyTracker, tampering: { readonly isOn: boolean }): DirtyTracker {
  return instead(tracker, {
    collect: () => {
      const { dirty, absent } = tracker.collect();
      if (!tampering.isOn) return { dirty, absent };
      const kept = new DirtyBitmap(dirty.pageCount);
      let seen = 0;
      for (let page = 0; page < dirty.pageCount; page++)
        if (dirty.has(page) && ++seen % KEEPS_ONE_IN !== 0) kept.set(page);
      return { dirty: kept, absent };
    },
  });
}
