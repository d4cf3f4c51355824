/**
 * The VM contract over a `FakeGuest`, with faults at every method: `failNext('pause', error)` makes the next call fail before
 * it does anything, `failAfter` once it has done its work. `beforeCall` runs before each method, to change things at just that moment.
 */

import { DirtyBitmap } from '../../src/bitmap/dirty-bitmap.js';
import { CheckpointError } from '../../src/errors.js';
import {
  COMPARES_ALL,
  TRACKS_WRITES,
  type DirtyTracker,
  type Harvest,
  type MemoryPicture,
  type TrackerTraits,
} from '../../src/hypervisor/dirty-tracker.js';
import type { GuestReaderDescription } from '../../src/hypervisor/guest-reader.js';
import type { Hypervisor } from '../../src/hypervisor/hypervisor.js';
import type { RestoreResult } from '../../src/hypervisor/restore.js';
import type { VmDeviceState } from '../../src/hypervisor/device-state.js';
import type { VmFreezer } from '../../src/hypervisor/freezer.js';
import type { VmMemory } from '../../src/hypervisor/memory.js';
import type { VmRunState } from '../../src/hypervisor/run-state.js';
import type { VmDisks } from '../../src/hypervisor/disks.js';
import type { Vm, VmIdentity, VmReport } from '../../src/hypervisor/vm.js';
import type { JsonObject } from '../../src/types.js';
import { FakeDisks } from './fake-disks.js';
import type { FakeGuest } from './fake-guest.js';
import type { FakeReaderOptions } from './fake-guest-reader.js';

export const FAKE_TRACKER = 'fake';

/** A tracker to which the fake hypervisor sends the memory. */
export const FAKE_PICTURE_TRACKER = 'fake-picture';

export type FakeMethod =
  | 'approach'
  | 'memoryLayout'
  | 'inspect'
  | 'runState'
  | 'pause'
  | 'resume'
  | 'checkDeviceState'
  | 'saveDeviceState'
  | 'takeDeviceState'
  | 'freeze'
  | 'thaw'
  | 'disks'
  | 'checkStorage'
  | 'makeDurable'
  | 'snapshotDisks'
  | 'dropDiskSnapshots'
  | 'start'
  | 'beginCheckpoint'
  | 'collect'
  | 'putBack'
  | 'stop'
  | 'close';

export class FakeVm implements Vm {
  readonly address: string;
  readonly identity: VmIdentity;
  readonly machine: JsonObject;
  readonly guest: FakeGuest;
  readonly disks: VmDisks = new FakeDisks(this);
  readonly memory: VmMemory = {
    layout: () => this.later('memoryLayout', () => this.guest.layout),
    reader: () => this.reader({}),
    tracker: (kind) => this.#tracker(kind),
  };
  readonly runState: VmRunState = this.#fakeRunState();
  readonly deviceState: VmDeviceState = this.#fakeDeviceState();
  readonly freezer: VmFreezer = {
    freeze: () =>
      this.later('freeze', () => {
        this.guest.isFrozen = true;
        return 2;
      }),
    thaw: () =>
      this.later('thaw', () => {
        if (this.guest.state !== 'running') throw new CheckpointError('GUEST_FROZEN', 'it stands still');
        this.guest.isFrozen = false;
      }),
  };
  /** Called before each method does its work. */
  beforeCall: (method: FakeMethod) => void = () => undefined;
  readonly #failNext = new Map<FakeMethod, unknown>();
  readonly #failAfter = new Map<FakeMethod, unknown>();
  readonly #holdNext = new Map<FakeMethod, Promise<unknown>>();
  #isClosed = false;
  #picture: FakePictureTracker | undefined;
  constructor(guest: FakeGuest) {
    this.guest = guest;
    this.address = `fake:${guest.identity.name}`;
    this.identity = guest.identity;
    this.machine = guest.machine;
  }

  /** The next call of the method fails and does nothing. */
  failNext(method: FakeMethod, error: unknown): void {
    this.#failNext.set(method, error);
  }

  /** The next call of the method does its work and then fails. */
  failAfter(method: FakeMethod, error: unknown): void {
    this.#failAfter.set(method, error);
  }

  /** The next call of the method does its work once `until` is settled. */
  holdNext(method: FakeMethod, until: Promise<unknown>): void {
    this.#holdNext.set(method, until);
  }

  /** Runs `work` as the method: faults, the log of calls, a VM that is gone or closed. For the tracker as well. */
  call<T>(method: FakeMethod, work: () => T): T {
    this.guest.calls.push(method);
    this.beforeCall(method);
    if (this.#isClosed || this.guest.isGone) throw new CheckpointError('VM_GONE', 'the fake VM is gone');
    throwOnce(this.#failNext, method);
    const result = work();
    throwOnce(this.#failAfter, method);
    return result;
  }

  // Each of the following rejects, and never throws, what goes wrong in it.

  async inspect(): Promise<VmReport> {
    return this.later('inspect', () => ({
      trackers: [
        {
          kind: FAKE_TRACKER,
          usable: this.guest.canTrack,
          reason: this.guest.canTrack ? '' : 'no such kernel',
        },
        { kind: FAKE_PICTURE_TRACKER, usable: this.guest.canTrack, reason: '' },
        { kind: 'compare', usable: true, reason: 'compares all pages', immuneTo: 'all' },
      ],
      hazards: [...this.guest.hazards],
    }));
  }

  close(): Promise<void> {
    this.guest.calls.push('close');
    this.#isClosed = true;
    return Promise.resolve();
  }

  /** How workers read it; `instead` names other files than those of its memory. */
  reader(instead: Partial<FakeReaderOptions>): GuestReaderDescription {
    return {
      moduleUrl: new URL('./fake-guest-reader.js', import.meta.url).href,
      options: { ...this.guest.reader, ...instead },
    };
  }

  #tracker(kind: string): DirtyTracker {
    this.#picture = kind === FAKE_PICTURE_TRACKER ? new FakePictureTracker(this) : undefined;
    if (this.#picture !== undefined) return this.#picture;
    if (kind === FAKE_TRACKER && this.guest.canTrack) return new FakeTracker(this);
    if (kind === 'compare') return new FakeCompareTracker(this);
    throw new CheckpointError('TRACKER_UNAVAILABLE', `there is no tracker called "${kind}"`);
  }

  #fakeRunState(): VmRunState {
    // This object stopped the guest.
    let stopped = false;
    return {
      read: () => this.later('runState', () => this.guest.state),
      pause: ({ stopping } = {}) =>
        this.later('pause', () => {
          if (this.guest.state === 'other') throw new CheckpointError('VM_STATE', 'the fake VM is neither');
          if (this.guest.state === 'paused') return false;
          stopping?.();
          this.guest.state = 'paused';
          stopped = true;
          return true;
        }),
      resume: () =>
        this.later('resume', () => {
          if (!stopped) return;
          stopped = false;
          const before = this.guest.state;
          this.guest.state = 'running';
          if (before === 'running')
            throw new CheckpointError('VM_STATE', 'somebody else resumed the fake VM');
        }),
    };
  }

  #fakeDeviceState(): VmDeviceState {
    let saved: Uint8Array | undefined;
    return {
      check: () => this.later('checkDeviceState', () => undefined),
      save: () =>
        this.later('saveDeviceState', () => {
          this.#picture?.finish();
          saved = this.guest.deviceState.slice();
        }),
      take: () =>
        this.later('takeDeviceState', () => {
          const bytes = saved;
          saved = undefined;
          if (bytes === undefined) throw new CheckpointError('VM_STATE', 'no device state has been saved');
          return bytes;
        }),
    };
  }

  /** Does what `call` does, but not straight away: what a caller does not wait for must show. */
  async later<T>(method: FakeMethod, work: () => T): Promise<T> {
    await new Promise((resolve) => setImmediate(resolve));
    const until = this.#holdNext.get(method);
    this.#holdNext.delete(method);
    await until;
    return this.call(method, work);
  }
}

class FakeTracker implements DirtyTracker {
  readonly kind: string = FAKE_TRACKER;
  protected readonly vm: FakeVm;
  #token: string | undefined;
  #owed: DirtyBitmap;

  constructor(vm: FakeVm) {
    this.vm = vm;
    this.#owed = new DirtyBitmap(vm.guest.layout.pageSpan);
  }

  get traits(): TrackerTraits {
    return { ...TRACKS_WRITES, isLastCollectEnough: () => this.vm.guest.isLastCollectEnough };
  }

  get token(): string {
    return this.#on();
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  async start(): Promise<void> {
    this.#token = this.vm.call('start', () => this.arm());
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  async beginCheckpoint(): Promise<string> {
    return this.vm.call('beginCheckpoint', () => {
      const { guest } = this.vm;
      // This happens on Xen: it turns out that somebody had switched tracking off, and it is on again from here, with nothing in it.
      if (--guest.asksUntilRecordIsLost === 0) {
        guest.loseTracker();
        this.#token = guest.arm();
        guest.harvest();
      }
      return this.#on();
    });
  }

  collect(): Harvest {
    this.#on();
    return this.vm.call('collect', () => {
      const { dirty, absent } = this.harvest();
      dirty.or(this.#owed);
      this.#owed = new DirtyBitmap(this.#owed.pageCount);
      return { dirty, absent };
    });
  }

  putBack(dirty: DirtyBitmap): void {
    this.vm.call('putBack', () => this.#owed.or(dirty));
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  async stop(): Promise<void> {
    this.vm.call('stop', () => this.vm.guest.loseTracker());
    this.close();
  }

  close(): void {
    this.#token = undefined;
  }

  protected arm(): string {
    return this.vm.guest.arm();
  }

  protected harvest(): Harvest {
    if (this.vm.guest.token !== this.#token)
      throw new CheckpointError('TRACKER_OFF', 'the memory is not tracked');
    return this.vm.guest.harvest();
  }

  #on(): string {
    if (this.#token === undefined) throw new CheckpointError('TRACKER_OFF', 'the tracker is not started');
    return this.#token;
  }
}

/** Pages are in the picture from the device state on; before, reading it gives what no guest ever wrote. */
class FakePictureTracker extends FakeTracker {
  override readonly kind = FAKE_PICTURE_TRACKER;
  override get traits(): TrackerTraits {
    return { ...super.traits, picture: this.#picture };
  }
  readonly #picture: MemoryPicture = {
    pausePages: 1,
    runState: this.vm.runState,
    deviceState: this.vm.deviceState,
    reader: () => this.vm.reader({ memoryPath: this.vm.guest.picturePath }),
    approach: async ({ decide, onRound }) => {
      await new Promise((resolve) => setImmediate(resolve));
      this.vm.call('approach', () => {
        this.#sent = undefined;
        this.vm.guest.spoilPicture();
        for (let round = 1; !decide(round, 10, undefined, 1e6); round++) onRound(round, 10);
        return undefined;
      });
    },
  };
  #sent: Harvest | undefined;

  finish(): void {
    this.vm.guest.fillPicture();
    this.#sent = super.harvest();
  }

  protected override harvest(): Harvest {
    const empty = (): DirtyBitmap => new DirtyBitmap(this.vm.guest.layout.pageSpan);
    const sent = this.#sent ?? { dirty: empty(), absent: empty() };
    this.#sent = undefined;
    return sent;
  }
}

let compareStarts = 0;

class FakeCompareTracker extends FakeTracker {
  override readonly kind = 'compare';

  override get traits(): TrackerTraits {
    return COMPARES_ALL;
  }

  protected override arm(): string {
    return `compare:${++compareStarts}`;
  }

  protected override harvest(): Harvest {
    const { layout, absent } = this.vm.guest;
    const dirty = new DirtyBitmap(layout.pageSpan);
    for (const { firstPage, pageCount } of layout.regions) dirty.setRange(firstPage, pageCount);
    return { dirty, absent };
  }
}

/** A hypervisor with the given guests, addresses `fake:NAME`. `onAttach` sees each VM before the engine does. */
export class FakeHypervisor implements Hypervisor {
  readonly name = 'fake';
  readonly schemes = ['fake'];
  readonly exportFormats = [];
  readonly #guests: readonly FakeGuest[];
  readonly #onAttach: (vm: FakeVm) => void;

  constructor(guests: readonly FakeGuest[], onAttach: (vm: FakeVm) => void = () => undefined) {
    this.#guests = guests;
    this.#onAttach = onAttach;
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- rejects what goes wrong
  async attach(address: string): Promise<Vm> {
    const guest = this.#guests.find(({ identity }) => `fake:${identity.name}` === address);
    if (guest === undefined || guest.isGone) throw new CheckpointError('VM_UNREACHABLE', `no ${address}`);
    const vm = new FakeVm(guest);
    this.#onAttach(vm);
    return vm;
  }

  readonly restoreOptions = {};

  restore(): Promise<RestoreResult> {
    return Promise.reject(new CheckpointError('VM_UNSUPPORTED', 'a fake VM is not restored'));
  }

  exportTo(): Promise<number> {
    return Promise.reject(new CheckpointError('VM_UNSUPPORTED', 'a fake VM is not exported'));
  }
}

function throwOnce(errors: Map<FakeMethod, unknown>, method: FakeMethod): void {
  if (!errors.has(method)) return;
  const error = errors.get(method);
  errors.delete(method);
  throw error;
}
