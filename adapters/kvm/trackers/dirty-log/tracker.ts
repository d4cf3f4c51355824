/**
 * Dirty tracking by KVM's own log, for a VMM that embeds Cairn: `KvmMachine` is a VM of this very process.
 *
 * KVM logs what vCPUs write. What the VMM writes itself (device emulation, DMA, loaders) it must tell:
 * `noteWritten`. That is why the log alone is no tracker for the VM of a QEMU.
 *
 * Three ways, all with the same result. Bitmap: getting it clears it and write-protects its pages. Bitmap
 * with manual protection: first get, then clear just that; a write in between sets no bit, but the page is
 * read after `collect`, and so holds it. Rings: harvest, then reset; a write in between goes the same way.
 */

import { randomBytes } from 'node:crypto';

import { DirtyBitmap } from '../../../../src/bitmap/dirty-bitmap.js';
import { CheckpointError } from '../../../../src/errors.js';
import { TRACKS_WRITES, type DirtyTracker, type Harvest } from '../../../../src/hypervisor/dirty-tracker.js';
import type { MemoryLayout } from '../../../../src/hypervisor/memory-layout.js';
import { PAGE_SIZE_BYTES } from '../../../../src/types.js';
import type { KvmMachine, KvmVcpu, MemorySlot } from './device.js';

export const KVM_DIRTY_LOG_KIND = 'kvm-dirty-log';

export interface KvmDirtyLogOptions {
  readonly machine: KvmMachine;
  readonly layout: MemoryLayout;
  /** A slot for each region of the layout, in its order and of the same size. */
  readonly slots: readonly MemorySlot[];
  /** All vCPUs, where dirty rings are used. A vCPU made later would not be seen. */
  readonly vcpus: readonly KvmVcpu[];
}

export class KvmDirtyLogTracker implements DirtyTracker {
  readonly kind = KVM_DIRTY_LOG_KIND;
  readonly traits = TRACKS_WRITES;
  readonly #options: KvmDirtyLogOptions;
  readonly #firstPageOf: ReadonlyMap<number, number>;
  readonly #owed: DirtyBitmap;
  #token: string | undefined;
  /** Where a ring stands is not known any more: all pages count as written from then on. */
  #hasOverrun = false;

  constructor(options: KvmDirtyLogOptions) {
    const { layout, slots } = options;
    if (
      slots.length !== layout.regions.length ||
      slots.some((slot, i) => slot.sizeBytes !== layout.regions[i]!.sizeBytes)
    )
      throw new RangeError('the slots are not those of the layout');
    this.#options = options;
    this.#firstPageOf = new Map(slots.map(({ slot }, i) => [slot, layout.regions[i]!.firstPage]));
    this.#owed = new DirtyBitmap(layout.pageSpan);
  }

  get token(): string {
    if (this.#token === undefined) throw trackerOff();
    return this.#token;
  }

  /** The log begins empty here, so the token is new each time. @throws KVM_CALL */
  start(): Promise<void> {
    if (this.#token !== undefined) return Promise.resolve();
    const { machine, slots } = this.#options;
    for (const slot of slots) machine.setMemory(slot, { logsDirtyPages: true });
    this.#token = `${KVM_DIRTY_LOG_KIND}:${randomBytes(12).toString('hex')}`;
    return Promise.resolve();
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  async beginCheckpoint(): Promise<string> {
    return this.token;
  }

  /** Guest memory that the VMM has written itself, in pages of the layout. */
  noteWritten(firstPage: number, pageCount: number): void {
    this.#owed.setRange(firstPage, pageCount);
  }

  /** @throws TRACKER_OFF, KVM_CALL */
  collect(): Harvest {
    const { machine, layout } = this.#options;
    if (this.#token === undefined) throw trackerOff();
    // What is collected is set there first: a call that fails in the middle leaves all of it owed.
    if (machine.hasRings) this.#collectRings();
    else this.#collectLogs();
    const dirty = this.#owed.clone();
    this.#owed.clear();
    return { dirty, absent: new DirtyBitmap(layout.pageSpan) };
  }

  putBack(dirty: DirtyBitmap): void {
    this.#owed.or(dirty);
  }

  stop(): Promise<void> {
    const { machine, slots } = this.#options;
    if (this.#token !== undefined) for (const slot of slots) machine.setMemory(slot);
    this.#token = undefined;
    return Promise.resolve();
  }

  /** Machine and vCPUs stay the caller's. */
  close(): void {
    this.#token = undefined;
  }

  #collectLogs(): void {
    const { machine, slots } = this.#options;
    for (const { slot, sizeBytes } of slots) {
      const pageCount = sizeBytes / PAGE_SIZE_BYTES;
      const bits = machine.getDirtyLog(slot, pageCount);
      // Regions begin at whole words.
      const firstWord = this.#firstPageOf.get(slot)! / 64;
      bits.forEach((word, i) => (this.#owed.words[firstWord + i]! |= word));
      if (machine.isManual) machine.clearDirtyLog(slot, 0, pageCount, bits);
    }
  }

  #collectRings(): void {
    const { machine, layout, vcpus } = this.#options;
    let count = 0;
    for (const { ring } of vcpus) {
      if (ring === undefined) continue;
      count += ring.harvest((slot, page) => {
        const firstPage = this.#firstPageOf.get(slot);
        // A slot that is not tracked is somebody else's business.
        if (firstPage !== undefined) this.#owed.setRange(firstPage + page, 1);
      });
      this.#hasOverrun ||= ring.isOverrun;
    }
    if (count > 0) machine.resetDirtyRings();
    if (this.#hasOverrun)
      for (const { firstPage, pageCount } of layout.regions) this.#owed.setRange(firstPage, pageCount);
  }
}

function trackerOff(): CheckpointError {
  return new CheckpointError('TRACKER_OFF', `tracker ${KVM_DIRTY_LOG_KIND} is not started`);
}
