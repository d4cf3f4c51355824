/**
 * Finds the pages of a guest that have memory behind them, as a bitmap over the layout.
 *
 * The type scan is what makes ballooning safe: a page that comes back from the balloon is not flagged in the
 * log-dirty bitmap, whatever the guest writes to it in that epoch. While the guest is stopped the answer
 * cannot change, so one scan serves the whole stop.
 */

import { DirtyBitmap } from '../../../src/bitmap/dirty-bitmap.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import type { GuestMemory } from './guest-memory.js';
import { firstFrameOf } from '../domain/physmap.js';

export interface PresenceScanner {
  /** Pages with memory behind them, now. The bitmap is shared: callers leave it as it is. */
  present(): DirtyBitmap;
}

export class TypeScan implements PresenceScanner {
  readonly #memory: Pick<GuestMemory, 'visitPresent'>;
  readonly #layout: MemoryLayout;
  readonly #stopNumber: () => number;
  #last: { readonly stop: number; readonly present: DirtyBitmap } | undefined;

  /** @param stopNumber counts the stops of this guest and is 0 while it runs */
  constructor(memory: Pick<GuestMemory, 'visitPresent'>, layout: MemoryLayout, stopNumber: () => number) {
    this.#memory = memory;
    this.#layout = layout;
    this.#stopNumber = stopNumber;
  }

  present(): DirtyBitmap {
    const stop = this.#stopNumber();
    if (stop !== 0 && this.#last?.stop === stop) return this.#last.present;
    const present = new DirtyBitmap(this.#layout.pageSpan);
    for (const region of this.#layout.regions) {
      const firstFrame = firstFrameOf(region);
      this.#memory.visitPresent(firstFrame, region.pageCount, (frame, frameCount) =>
        present.setRange(region.firstPage + (frame - firstFrame), frameCount),
      );
    }
    this.#last = { stop, present };
    return present;
  }
}

/** Everything in the regions that is not in `present`. Caller owns it. */
export function absentPages(layout: MemoryLayout, present: DirtyBitmap): DirtyBitmap {
  const absent = new DirtyBitmap(layout.pageSpan);
  for (const region of layout.regions) absent.setRange(region.firstPage, region.pageCount);
  absent.andNot(present);
  return absent;
}
