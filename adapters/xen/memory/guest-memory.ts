/**
 * How the memory of a guest is found, read and saved, which differs between guests whose frames the
 * hypervisor translates (PVH, HVM) and PV guests, which know machine frames.
 */

import { join } from 'node:path';

import type { DirtyBitmap } from '../../../src/bitmap/dirty-bitmap.js';
import type { GuestReaderDescription } from '../../../src/hypervisor/guest-reader.js';
import type { MemoryLayout } from '../../../src/hypervisor/memory-layout.js';
import { captureHvmState, type XenDeviceState } from '../stream/device-state.js';
import type { XenDomain } from '../domain/domain.js';
import { describeGuestReader } from './guest-reader.js';
import { firstFrameOf } from '../domain/physmap.js';
import { removeFrameTable, writeFrameTable } from './pv/frame-table.js';
import { describePvReader } from './pv/guest-reader.js';
import { PvMemory } from './pv/pv-memory.js';

export interface GuestMemory {
  /** Count of frames: one more than the number of the highest. */
  frameCount(): number;
  /** Calls `visit` with each stretch of frames in [first, first + count) that have memory behind them. */
  visitPresent(first: number, count: number, visit: (frame: number, frameCount: number) => void): void;
  reader(layout: MemoryLayout): GuestReaderDescription;
  /** Drops what a Cairn that was killed in a stop left of it. Its caller holds the lock of the VM. */
  discardLeftovers(): void;
  /** The guest has suspended itself, and stands still until `running`. */
  stopped(): void;
  running(): void;
  /** State of the suspended guest, without a device model. */
  captureState(presentFrames: Uint32Array): XenDeviceState;
}

export class TranslatedMemory implements GuestMemory {
  readonly #domain: XenDomain;

  constructor(domain: XenDomain) {
    this.#domain = domain;
  }

  frameCount(): number {
    return this.#domain.frameCount();
  }

  visitPresent(first: number, count: number, visit: (frame: number, frameCount: number) => void): void {
    this.#domain.visitPresent(first, count, visit);
  }

  reader(layout: MemoryLayout): GuestReaderDescription {
    return describeGuestReader(this.#domain.calls.version, this.#domain.domid, layout);
  }

  discardLeftovers(): void {
    // There are none.
  }

  stopped(): void {
    // The hypervisor answers at any time.
  }

  running(): void {
    // Nothing is kept of the stop.
  }

  captureState(presentFrames: Uint32Array): XenDeviceState {
    return captureHvmState(this.#domain, presentFrames);
  }
}

export class PvGuestMemory implements GuestMemory {
  readonly #domain: XenDomain;
  readonly #memory: PvMemory;
  readonly #tablePath: string;
  #stop: ReturnType<PvMemory['load']> | undefined;

  constructor(domain: XenDomain, runtimeDir: string) {
    this.#domain = domain;
    this.#memory = new PvMemory(domain);
    // Only one Cairn at a time takes checkpoints of a domain, so the name needs nothing more.
    this.#tablePath = join(runtimeDir, `xen-frames-${domain.domid}`);
  }

  frameCount(): number {
    return this.#domain.frameCount();
  }

  /** While the guest runs the answer is of the moment, and may be of none. */
  visitPresent(first: number, count: number, visit: (frame: number, frameCount: number) => void): void {
    const { table } = this.#stop ?? this.#memory.load();
    let from = -1;
    for (let frame = first; frame <= first + count; frame++) {
      const isPresent = frame < first + count && table.isPresent(frame);
      if (isPresent && from < 0) from = frame;
      if (!isPresent && from >= 0) {
        visit(from, frame - from);
        from = -1;
      }
    }
  }

  reader(layout: MemoryLayout): GuestReaderDescription {
    const { calls, domid } = this.#domain;
    return describePvReader(calls.version, domid, this.#tablePath, layout);
  }

  /**
   * Workers would read pages of a guest that runs by a table that is out of date, some of which may be
   * another domain's by now.
   */
  discardLeftovers(): void {
    if (this.#stop === undefined) removeFrameTable(this.#tablePath);
  }

  stopped(): void {
    this.#stop = this.#memory.load();
    writeFrameTable(this.#tablePath, this.#stop.table);
  }

  running(): void {
    // Only what this object left there: another process may have the guest stopped.
    if (this.#stop !== undefined) removeFrameTable(this.#tablePath);
    this.#stop = undefined;
  }

  captureState(presentFrames: Uint32Array): XenDeviceState {
    return this.#memory.captureState(this.#stop ?? this.#memory.load(), presentFrames);
  }
}

/** u32 pairs (first frame, count) of the pages in `present`. Caller owns them. */
export function framesOf(layout: MemoryLayout, present: DirtyBitmap): Uint32Array {
  const runs = present.toRuns();
  const frames: number[] = [];
  for (const region of layout.regions) {
    const end = region.firstPage + region.pageCount;
    const offset = firstFrameOf(region) - region.firstPage;
    for (let i = 0; i < runs.length; i += 2) {
      // A run may cross from one region into the next.
      const from = Math.max(runs[i]!, region.firstPage);
      const to = Math.min(runs[i]! + runs[i + 1]!, end);
      if (from < to) frames.push(from + offset, to - from);
    }
  }
  return Uint32Array.from(frames);
}
