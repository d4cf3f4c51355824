/** A machine that was read from a file, as the engine sees it: it stands still, and all of its memory is there to be read. */

import { randomBytes } from 'node:crypto';

import { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import { CheckpointError } from '../errors.js';
import type { DirtyTracker, Harvest, TrackerReport } from '../hypervisor/dirty-tracker.js';
import type { GuestReaderDescription } from '../hypervisor/guest-reader.js';
import type { ImportedMachine } from '../hypervisor/intake.js';
import type { MemoryLayout } from '../hypervisor/memory-layout.js';
import type { RunState, Vm, VmIdentity, VmReport } from '../hypervisor/vm.js';
import type { JsonObject } from '../types.js';
import type { MemoryFile } from './memory-file.js';
import { NO_DISKS } from './no-disks.js';

/** Everything is read once, in bounded memory: what the engine does with a tracker of this name. */
const KIND = 'compare';
const REPORT: TrackerReport = { kind: KIND, usable: true, reason: 'all pages of the file are read' };

export class ImageVm implements Vm {
  readonly address: string;
  readonly identity: VmIdentity;
  readonly machine: JsonObject;
  readonly disks = NO_DISKS;
  readonly #memory: MemoryFile;
  readonly #deviceState: Uint8Array;
  /** As the engine wants it: a VM that is paused by it, and resumed. */
  #isPaused = false;

  constructor(address: string, image: ImportedMachine, memory: MemoryFile) {
    this.address = address;
    this.identity = { ...image.identity, instance: `import:${randomBytes(8).toString('hex')}` };
    this.machine = image.machine;
    this.#memory = memory;
    this.#deviceState = image.deviceState;
  }

  memoryLayout(): Promise<MemoryLayout> {
    return Promise.resolve(this.#memory.layout);
  }

  guestReader(): GuestReaderDescription {
    return this.#memory.reader();
  }

  inspect(): Promise<VmReport> {
    return Promise.resolve({ trackers: [REPORT], hazards: [] });
  }

  tracker(kind: string): DirtyTracker {
    if (kind === KIND) return new ImageTracker(this.#memory);
    throw new CheckpointError('TRACKER_UNAVAILABLE', `there is no tracker called "${kind}"`);
  }

  runState(): Promise<RunState> {
    return Promise.resolve(this.#isPaused ? 'paused' : 'running');
  }

  pause(): Promise<boolean> {
    this.#isPaused = true;
    return Promise.resolve(true);
  }

  resume(): Promise<void> {
    this.#isPaused = false;
    return Promise.resolve();
  }

  saveDeviceState(): Promise<void> {
    return Promise.resolve();
  }

  takeDeviceState(): Promise<Uint8Array> {
    return Promise.resolve(this.#deviceState);
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** All pages, each time. */
class ImageTracker implements DirtyTracker {
  readonly kind = KIND;
  readonly token = `image:${randomBytes(12).toString('hex')}`;
  readonly #memory: MemoryFile;

  constructor(memory: MemoryFile) {
    this.#memory = memory;
  }

  start(): Promise<void> {
    return Promise.resolve();
  }

  collect(): Harvest {
    const { layout, present } = this.#memory;
    const dirty = new DirtyBitmap(layout.pageSpan);
    for (const region of layout.regions) dirty.setRange(region.firstPage, region.pageCount);
    const absent = dirty.clone();
    absent.andNot(present);
    return { dirty, absent };
  }

  putBack(): void {
    // The next collect reports all pages anyway.
  }

  stop(): Promise<void> {
    return Promise.resolve();
  }

  close(): void {
    // Nothing is held.
  }
}
