/** The memory of a domain as the core sees it: windows over the guest frames that have memory behind them. */

import type { DirtyTracker } from '../../../src/hypervisor/dirty-tracker.js';
import type { GuestReaderDescription } from '../../../src/hypervisor/guest-reader.js';
import type { VmMemory } from '../../../src/hypervisor/memory.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import type { XenDomain } from '../domain/domain.js';
import { layoutOf, mergeWindows, windowsOver, type FrameWindow } from '../domain/physmap.js';
import type { GuestMemory } from './guest-memory.js';
import { TypeScan } from './presence.js';

export interface KnownXenMemory {
  readonly layout: MemoryLayout;
  readonly scan: TypeScan;
}

export interface XenMemoryDeps {
  readonly domain: XenDomain;
  readonly guest: GuestMemory;
  /** Counts the stops of the guest. */
  readonly stopNumber: () => number;
  readonly openTracker: (kind: string, memory: KnownXenMemory) => DirtyTracker;
}

export class XenMemory implements VmMemory {
  readonly #deps: XenMemoryDeps;
  #known: (KnownXenMemory & { readonly windows: readonly FrameWindow[] }) | undefined;
  /**
   * Frames with memory behind them beyond those that the hypervisor counts as the domain's: a few are the
   * hypervisor's own.
   */
  #surplus = 0;

  constructor(deps: XenMemoryDeps) {
    this.#deps = deps;
  }

  /**
   * Looks at all guest frames, unless those of the known windows are all that the domain has: between memory
   * and the special pages lie a million others. Windows only grow, so that ballooning alone never changes the
   * layout.
   * @throws VM_GONE, FFI_FAILED
   */
  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  async layout(): Promise<MemoryLayout> {
    const { domain, guest, stopNumber } = this.#deps;
    if (this.#known !== undefined && this.#surplusOf(this.#known.windows) === this.#surplus)
      return this.#known.layout;
    const present: FrameWindow[] = [];
    guest.visitPresent(0, guest.frameCount(), (firstFrame, frameCount) =>
      present.push({ firstFrame, frameCount }),
    );
    this.#surplus = countOf(present) - domain.info().totalPages;
    const windows = mergeWindows([
      ...(this.#known?.windows ?? []),
      ...windowsOver(present, domain.info().maxPages),
    ]);
    if (JSON.stringify(windows) !== JSON.stringify(this.#known?.windows)) {
      const layout = layoutOf(windows);
      this.#known = { windows, layout, scan: new TypeScan(guest, layout, stopNumber) };
    }
    return this.known().layout;
  }

  reader(): GuestReaderDescription {
    return this.#deps.guest.reader(this.known().layout);
  }

  tracker(kind: string): DirtyTracker {
    return this.#deps.openTracker(kind, this.known());
  }

  /** The memory as it was looked at last. */
  known(): KnownXenMemory {
    if (this.#known === undefined) throw new RangeError('layout() comes first');
    return this.#known;
  }

  #surplusOf(windows: readonly FrameWindow[]): number {
    const { domain, guest } = this.#deps;
    const present: FrameWindow[] = [];
    for (const { firstFrame, frameCount } of windows)
      guest.visitPresent(firstFrame, frameCount, (first, count) =>
        present.push({ firstFrame: first, frameCount: count }),
      );
    return countOf(present) - domain.info().totalPages;
  }
}

function countOf(stretches: readonly FrameWindow[]): number {
  return stretches.reduce((sum, { frameCount }) => sum + frameCount, 0);
}
