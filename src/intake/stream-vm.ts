/**
 * A machine that arrives in a stream, as the engine sees it: a tracker with a picture, whose pages are those
 * that have come since the last checkpoint.
 */

import { randomBytes } from 'node:crypto';
import { performance } from 'node:perf_hooks';

import { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import type { DeviceStateSource } from '../hypervisor/device-state.js';
import {
  TRACKS_WRITES,
  type DirtyTracker,
  type Harvest,
  type MemoryPicture,
  type TrackerTraits,
} from '../hypervisor/dirty-tracker.js';
import type { GuestReaderDescription } from '../hypervisor/guest-reader.js';
import type { ReceivedMachine, ReceivedState } from '../hypervisor/intake.js';
import type { VmMemory } from '../hypervisor/memory.js';
import type { VmReport } from '../hypervisor/vm.js';
import { ImageRunState, ImageVm, memoryOf } from './image-vm.js';
import type { MemoryFile } from './memory-file.js';

export class StreamVm extends ImageVm {
  override readonly memory: VmMemory;
  readonly #received: ReceivedMachine;
  readonly #tracker: StreamTracker;

  constructor(address: string, received: ReceivedMachine, memory: MemoryFile) {
    const { identity, machine } = received;
    super(address, { identity, machine, deviceState: new Uint8Array(0) }, memory);
    this.#received = received;
    const tracker = new StreamTracker(received, memory);
    this.#tracker = tracker;
    this.memory = memoryOf(memory, received.trackerKind, () => tracker);
  }

  /** The state that the last checkpoint is of. */
  get state(): ReceivedState | undefined {
    return this.#tracker.state;
  }

  override inspect(): Promise<VmReport> {
    const { trackerKind: kind } = this.#received;
    const reason = 'pages come as the hypervisor sends them';
    return Promise.resolve({ trackers: [{ kind, usable: true, reason }], hazards: [] });
  }
}

class StreamTracker implements DirtyTracker, MemoryPicture {
  readonly kind: string;
  readonly traits: TrackerTraits = { ...TRACKS_WRITES, picture: this };
  readonly runState = new ImageRunState();
  /** Taking it puts the pages of the state into the memory that is read afterwards. */
  readonly deviceState: DeviceStateSource = {
    save: () => Promise.resolve(),
    take: () => this.#applyState(),
  };
  /** Nothing is known of what happened before this stream. */
  readonly token = `stream:${randomBytes(12).toString('hex')}`;
  readonly #received: ReceivedMachine;
  readonly #memory: MemoryFile;
  /** Pages that are in the memory, and in no checkpoint yet. */
  readonly #owed: DirtyBitmap;
  #state: ReceivedState | undefined;

  constructor(received: ReceivedMachine, memory: MemoryFile) {
    this.kind = received.trackerKind;
    this.#received = received;
    this.#memory = memory;
    this.#owed = new DirtyBitmap(memory.layout.pageSpan);
  }

  get state(): ReceivedState | undefined {
    return this.#state;
  }

  get pausePages(): number {
    return this.#state?.pauseMs === undefined ? 0 : this.#state.pageCount;
  }

  async approach(): Promise<number | undefined> {
    this.#state = await this.#received.claim();
    const { pauseMs } = this.#state;
    // The stop is over. What it took counts up to now.
    return pauseMs === undefined ? undefined : performance.now() - pauseMs;
  }

  reader(): GuestReaderDescription {
    return this.#memory.reader();
  }

  start(): Promise<void> {
    return Promise.resolve();
  }

  beginCheckpoint(): Promise<string> {
    return Promise.resolve(this.token);
  }

  collect(): Harvest {
    const { layout, present } = this.#memory;
    const dirty = this.#owed.clone();
    this.#owed.clear();
    const absent = new DirtyBitmap(layout.pageSpan);
    for (const region of layout.regions) absent.setRange(region.firstPage, region.pageCount);
    absent.andNot(present);
    return { dirty, absent };
  }

  putBack(dirty: DirtyBitmap): void {
    this.#owed.or(dirty);
  }

  stop(): Promise<void> {
    return Promise.resolve();
  }

  close(): void {
    // The memory is not the tracker's.
  }

  #applyState(): Promise<Uint8Array> {
    if (this.#state === undefined) throw new RangeError('no state was claimed');
    return this.#state.apply({
      put: (page, bytes) => {
        this.#owed.set(page);
        this.#memory.put(page, bytes);
      },
      putZero: (page) => {
        this.#owed.set(page);
        this.#memory.putZero(page);
      },
    });
  }
}
