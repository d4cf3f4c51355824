/**
 * The memory of a QEMU as the core sees it: its RAM blocks, read from the process where this one may do so.
 */

import type { DirtyTracker } from '../../../src/hypervisor/dirty-tracker.js';
import type { GuestReaderDescription } from '../../../src/hypervisor/guest-reader.js';
import type { VmMemory } from '../../../src/hypervisor/memory.js';
import { layOut, type MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import type { Monitor } from '../../qemu/monitor.js';
import type { QemuProcess } from '../../qemu/peer-process.js';
import { describeGuestReader } from './guest-reader.js';
import { mayReadMemory } from './process-access.js';
import { memoryPermission } from './process-memory.js';
import { listRamBlocks, RamBlocks, type RamBlock } from './ram-blocks.js';

export interface KvmMemoryDeps {
  readonly monitor: Monitor;
  readonly process: QemuProcess;
  readonly runtimeDir: string;
  readonly openTracker: (kind: string, memory: KnownMemory) => DirtyTracker;
}

export interface ReadableMemory {
  readonly layout: MemoryLayout;
  /** A block for each region of the layout, in its order. */
  readonly blocks: readonly RamBlock[];
}

/** The memory as it was looked at last. */
export interface KnownMemory {
  readonly layout: MemoryLayout;
  /**
   * What trackers and readers of process memory work on.
   * @throws VM_PERMISSION when this process may not read QEMU's memory
   */
  readable(): ReadableMemory;
}

export class KvmMemory implements VmMemory {
  readonly #deps: KvmMemoryDeps;
  readonly #ramBlocks: RamBlocks;
  #known: KnownMemory | undefined;

  constructor(deps: KvmMemoryDeps) {
    this.#deps = deps;
    this.#ramBlocks = new RamBlocks(deps.monitor, deps.process, deps.runtimeDir);
  }

  async layout(): Promise<MemoryLayout> {
    const { layout, blocks } = await this.look();
    this.#known = {
      layout,
      readable: () => {
        if (blocks === undefined) throw memoryPermission(this.#deps.process.pid);
        return { layout, blocks };
      },
    };
    return layout;
  }

  reader(): GuestReaderDescription {
    const { layout, blocks } = this.#lastKnown().readable();
    return describeGuestReader(this.#deps.process, layout, blocks);
  }

  tracker(kind: string): DirtyTracker {
    return this.#deps.openTracker(kind, this.#lastKnown());
  }

  /**
   * What is there now; what `reader` and `tracker` are for stays as it was. Blocks are undefined when this
   * process may not read QEMU's memory.
   */
  async look(): Promise<{ readonly layout: MemoryLayout; readonly blocks: readonly RamBlock[] | undefined }> {
    const { monitor, process } = this.#deps;
    const blocks = mayReadMemory(process.pid) ? await this.#ramBlocks.list() : undefined;
    return { layout: layOut(blocks ?? (await listRamBlocks(monitor))), blocks };
  }

  #lastKnown(): KnownMemory {
    if (this.#known === undefined) throw new RangeError('layout() comes first');
    return this.#known;
  }
}
