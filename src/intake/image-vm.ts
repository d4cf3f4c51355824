/**
 * A machine that was read from a file, as the engine sees it: it stands still, and all of its memory is there
 * to be read.
 */

import { randomBytes } from 'node:crypto';

import { DirtyBitmap } from '../bitmap/dirty-bitmap.js';
import { CheckpointError } from '../errors.js';
import type { VmDeviceState } from '../hypervisor/device-state.js';
import {
  COMPARES_ALL,
  type DirtyTracker,
  type Harvest,
  type TrackerReport,
} from '../hypervisor/dirty-tracker.js';
import type { ImportedMachine } from '../hypervisor/intake.js';
import type { VmMemory } from '../hypervisor/memory.js';
import type { RunState, VmRunState } from '../hypervisor/run-state.js';
import type { Vm, VmIdentity, VmReport } from '../hypervisor/vm.js';
import type { JsonObject } from '../types.js';
import type { MemoryFile } from './memory-file.js';
import { NO_DISKS } from './no-disks.js';

/** Everything is read once, in bounded memory: what the engine does with a tracker of this name. */
const KIND = 'compare';
const REPORT: TrackerReport = {
  kind: KIND,
  usable: true,
  immuneTo: 'all',
  reason: 'all pages of the file are read',
};

export class ImageVm implements Vm {
  readonly address: string;
  readonly identity: VmIdentity;
  readonly machine: JsonObject;
  readonly disks = NO_DISKS;
  readonly memory: VmMemory;
  readonly runState: VmRunState;
  readonly deviceState: VmDeviceState;

  constructor(address: string, image: ImportedMachine, memory: MemoryFile) {
    this.address = address;
    this.identity = { ...image.identity, instance: `import:${randomBytes(8).toString('hex')}` };
    this.machine = image.machine;
    this.runState = new ImageRunState(image.runState);
    this.memory = memoryOf(memory, KIND, () => new ImageTracker(memory));
    this.deviceState = {
      check: () => Promise.resolve(),
      save: () => Promise.resolve(),
      take: () => Promise.resolve(image.deviceState),
    };
  }

  inspect(): Promise<VmReport> {
    return Promise.resolve({ trackers: [REPORT], hazards: [] });
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** Memory that lies in a file. @param open makes the only tracker there is, of the kind given */
export function memoryOf(memory: MemoryFile, trackerKind: string, open: () => DirtyTracker): VmMemory {
  return {
    layout: () => Promise.resolve(memory.layout),
    reader: () => memory.reader(),
    tracker: (kind) => {
      if (kind === trackerKind) return open();
      throw new CheckpointError('TRACKER_UNAVAILABLE', `there is no tracker called "${kind}"`);
    },
  };
}

/**
 * The run state that the engine expects: that of a VM which it pauses and resumes, unless it was found
 * paused.
 */
export class ImageRunState implements VmRunState {
  #state: RunState;

  constructor(state: RunState = 'running') {
    this.#state = state;
  }

  read(): Promise<RunState> {
    return Promise.resolve(this.#state);
  }

  pause(): Promise<boolean> {
    const wasRunning = this.#state === 'running';
    this.#state = 'paused';
    return Promise.resolve(wasRunning);
  }

  resume(): Promise<void> {
    this.#state = 'running';
    return Promise.resolve();
  }
}

/** All pages, each time. */
class ImageTracker implements DirtyTracker {
  readonly kind = KIND;
  readonly traits = COMPARES_ALL;
  readonly token = `image:${randomBytes(12).toString('hex')}`;
  readonly #memory: MemoryFile;

  constructor(memory: MemoryFile) {
    this.#memory = memory;
  }

  start(): Promise<void> {
    return Promise.resolve();
  }

  beginCheckpoint(): Promise<string> {
    return Promise.resolve(this.token);
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
