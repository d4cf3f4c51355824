/** A running domain as the core sees it. The parts are in the files beside; this one puts them together. */

import { CheckpointError } from '../../src/errors.js';
import type { DirtyTracker, TrackerReport } from '../../src/hypervisor/dirty-tracker.js';
import type { GuestReaderDescription } from '../../src/hypervisor/guest-reader.js';
import type { MemoryLayout } from '../../src/hypervisor/memory-layout.js';
import type { VmDisks } from '../../src/hypervisor/disks.js';
import type { DiskDriverOptions } from '../../src/hypervisor/hypervisor.js';
import type { RunState, Vm, VmIdentity, VmReport } from '../../src/hypervisor/vm.js';
import { DriverDisks } from '../disks/disk-drivers.js';
import type { GuardProgram } from '../guard/pause-guard.js';
import type { JsonObject } from '../../src/types.js';
import { COMPARE_KIND, compareReport, CompareTracker } from './trackers/compare-tracker.js';
import { disksOf, UNTRIED_DRIVERS } from './devices/disks.js';
import { deviceModelProblem, type DeviceModel } from './devices/device-model.js';
import { encodeDeviceState } from './stream/device-state.js';
import type { XenDomain } from './domain/domain.js';
import { framesOf, PvGuestMemory, TranslatedMemory, type GuestMemory } from './memory/guest-memory.js';
import { deviceModelInventory } from './inspect/device-model-hazards.js';
import { guestKind, hazardsOf } from './inspect/hazards.js';
import { recordPath } from './trackers/log-dirty-record.js';
import { LOG_DIRTY_KIND, LogDirtyTracker } from './trackers/log-dirty-tracker.js';
import { memoryTargetOf, videoKibOf, withMemoryTarget } from './domain/memory-target.js';
import { layoutOf, mergeWindows, windowsOver, type FrameWindow } from './domain/physmap.js';
import { TypeScan } from './memory/presence.js';
import { Qcow2Disks } from './devices/qcow2-disks.js';
import { SuspendControl } from './suspend/run-state.js';
import { lacksXenDrivers } from './suspend/xen-drivers.js';
import { offersSuspend } from './domain/xenstore.js';

export interface XenVmOptions {
  readonly address: string;
  readonly runtimeDir: string;
  readonly name: string;
  readonly uuid: string;
  /** libxl's configuration of the domain. */
  readonly config: JsonObject;
  /** Names this run of dom0: domain ids start anew with each. */
  readonly bootId: string;
  readonly diskOptions?: DiskDriverOptions | undefined;
}

export interface XenVmDeps {
  /** Closed together with the VM. */
  readonly domain: XenDomain;
  readonly foreignSave: () => string;
  readonly guard?: GuardProgram;
  /** Of an HVM guest. */
  readonly deviceModel?: DeviceModel | undefined;
}

interface KnownMemory {
  readonly windows: readonly FrameWindow[];
  readonly layout: MemoryLayout;
  readonly scan: TypeScan;
}

export class XenVm implements Vm {
  readonly address: string;
  readonly identity: VmIdentity;
  readonly disks: VmDisks;
  readonly #options: XenVmOptions;
  readonly #deps: XenVmDeps;
  readonly #runState: SuspendControl;
  readonly #guest: GuestMemory;
  readonly #guestKind: string;
  #memory: KnownMemory | undefined;
  /** Frames with memory behind them beyond those that the hypervisor counts as the domain's: a few are the hypervisor's own. */
  #surplus = 0;
  /** In KiB, of the last stop. */
  #memoryTarget: number | undefined;
  #deviceState: Uint8Array | undefined;
  #logDirty: LogDirtyTracker | undefined;
  #deviceModelProblem = '';

  private constructor(options: XenVmOptions, deps: XenVmDeps) {
    const { domain, foreignSave, guard, deviceModel } = deps;
    const kind = guestKind({ info: domain.info(), config: options.config });
    this.address = options.address;
    this.identity = {
      hypervisor: 'xen',
      name: options.name,
      uuid: options.uuid,
      machineType: `xen-${kind}`,
      instance: `${domain.domid}:${options.uuid}:${options.bootId}`,
    };
    this.#guestKind = kind;
    this.#options = options;
    this.#deps = deps;
    this.#guest =
      kind === 'pv' ? new PvGuestMemory(domain, options.runtimeDir) : new TranslatedMemory(domain);
    this.disks = new DriverDisks({
      list: () => Promise.resolve(disksOf(options.config)),
      cwd: '/',
      images: new Qcow2Disks(domain.domid, deviceModel?.exchange),
      untried: UNTRIED_DRIVERS,
      options: options.diskOptions,
    });
    this.#runState = new SuspendControl({
      domain,
      uuid: options.uuid,
      runtimeDir: options.runtimeDir,
      instance: this.identity.instance,
      foreignSave,
      deviceModel,
      ...(guard === undefined ? {} : { guard }),
    });
  }

  /** Changes nothing, except that a guest which a killed Cairn left suspended is resumed. @throws VM_GONE, FFI_FAILED, USAGE */
  static async attach(options: XenVmOptions, deps: XenVmDeps): Promise<XenVm> {
    const vm = new XenVm(options, deps);
    if (await vm.#runState.recover()) {
      process.emitWarning(
        `${options.address} was left suspended by a Cairn that was killed, and has been resumed`,
      );
    }
    if (deps.deviceModel !== undefined)
      vm.#deviceModelProblem = await deviceModelProblem(deps.deviceModel, allowsUnproven());
    return vm;
  }

  /** As it was in the last stop. */
  get machine(): JsonObject {
    const { config } = this.#options;
    const { version } = this.#deps.domain.calls;
    return {
      config: this.#memoryTarget === undefined ? config : withMemoryTarget(config, this.#memoryTarget),
      guestKind: this.#guestKind,
      xenMajor: version.major,
      xenMinor: version.minor,
    };
  }

  /**
   * Looks at all guest frames, unless those of the known windows are all that the domain has: between memory and the special pages lie
   * a million others. Windows only grow, so that ballooning alone never changes the layout.
   * Each checkpoint begins with it, so this is where the dirty record of a guest with a device model is proven: see `LogDirtyTracker.prove`.
   * @throws VM_GONE, FFI_FAILED; with a device model also VM_STATE, VM_BUSY, QMP_COMMAND
   */
  async memoryLayout(): Promise<MemoryLayout> {
    const { domain } = this.#deps;
    await this.#logDirty?.prove();
    if (this.#memory !== undefined && this.#surplusOf(this.#memory.windows) === this.#surplus)
      return this.#memory.layout;
    const present: FrameWindow[] = [];
    this.#guest.visitPresent(0, this.#guest.frameCount(), (firstFrame, frameCount) =>
      present.push({ firstFrame, frameCount }),
    );
    this.#surplus = countOf(present) - domain.info().totalPages;
    const windows = mergeWindows([
      ...(this.#memory?.windows ?? []),
      ...windowsOver(present, domain.info().maxPages),
    ]);
    if (JSON.stringify(windows) !== JSON.stringify(this.#memory?.windows)) {
      const layout = layoutOf(windows);
      this.#memory = { windows, layout, scan: new TypeScan(this.#guest, layout, this.#runState.stopNumber) };
    }
    return this.#known().layout;
  }

  guestReader(): GuestReaderDescription {
    return this.#guest.reader(this.#known().layout);
  }

  inspect(): Promise<VmReport> {
    const { domain, foreignSave, deviceModel } = this.#deps;
    const info = domain.info();
    return Promise.resolve({
      trackers: [logDirtyReport(info.isHvm, info.hasHap), compareReport],
      hazards: hazardsOf({
        info,
        config: this.#options.config,
        offersSuspend:
          offersSuspend(domain.calls, domain.domid) || (deviceModel !== undefined && lacksXenDrivers(domain)),
        foreignSave: foreignSave(),
        xen: domain.calls.version,
        allowsUnproven: allowsUnproven(),
        deviceModel: deviceModelInventory(domain, this.#deviceModelProblem),
      }),
    });
  }

  tracker(kind: string): DirtyTracker {
    const { domain, foreignSave, deviceModel } = this.#deps;
    const { layout, scan } = this.#known();
    // Whoever asks for a tracker is about to take checkpoints, and alone. The guard gets ready in the meantime.
    this.#guest.discardLeftovers();
    this.#runState.prepare().catch(() => undefined);
    if (kind === LOG_DIRTY_KIND) {
      this.#logDirty = new LogDirtyTracker({
        domain,
        layout,
        recordPath: recordPath(this.#options.runtimeDir, this.identity.instance),
        presence: scan,
        isStopped: () => domain.info().isSuspended,
        foreignSave,
        ...(deviceModel === undefined ? {} : { reportWrites: () => deviceModel.reportWrites() }),
      });
      return this.#logDirty;
    }
    this.#logDirty = undefined;
    if (kind === COMPARE_KIND) return new CompareTracker(layout, scan);
    throw new CheckpointError('TRACKER_UNAVAILABLE', `there is no tracker called "${kind}"`, {
      hint: `known: ${LOG_DIRTY_KIND}, ${COMPARE_KIND}`,
    });
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- a failure is a rejection, as everywhere in the contract
  async runState(): Promise<RunState> {
    return this.#runState.read();
  }

  async pause(stopping?: () => void): Promise<boolean> {
    const stopped = await this.#runState.pause(stopping);
    this.#guest.stopped();
    return stopped;
  }

  async resume(running?: () => void): Promise<void> {
    await this.#runState.resume();
    running?.();
    this.#guest.running();
  }

  /**
   * State records and the list of present frames of the suspended guest. Writes nothing to guest memory.
   * @throws VM_STATE when the guest is not suspended, or has memory outside of the known regions
   */
  async saveDeviceState(): Promise<void> {
    const { domain, deviceModel } = this.#deps;
    const info = domain.info();
    if (!info.isSuspended) {
      throw new CheckpointError('VM_STATE', `domain ${domain.domid} is not suspended`, { retryable: true });
    }
    const { layout, scan } = this.#known();
    const present = scan.present();
    if (present.count() < info.totalPages) {
      throw new CheckpointError(
        'VM_STATE',
        `domain ${domain.domid} has ${info.totalPages} pages, of which ${present.count()} were found`,
        { hint: 'its memory map changed during the checkpoint; the next one looks again', retryable: true },
      );
    }
    this.#memoryTarget = memoryTargetOf(
      domain,
      deviceModel === undefined ? 0 : videoKibOf(this.#options.config),
    );
    const state = this.#guest.captureState(framesOf(layout, present));
    const emulator = await deviceModel?.saveState();
    this.#deviceState = encodeDeviceState(emulator === undefined ? state : { ...state, emulator });
  }

  takeDeviceState(): Promise<Uint8Array> {
    const state = this.#deviceState;
    this.#deviceState = undefined;
    if (state === undefined) {
      return Promise.reject(
        new CheckpointError('VM_STATE', 'no device state was saved, or it was taken already'),
      );
    }
    return Promise.resolve(state);
  }

  async close(): Promise<void> {
    await this.#runState.close();
    this.#guest.running();
    this.#deps.domain.calls.close();
  }

  #surplusOf(windows: readonly FrameWindow[]): number {
    const present: FrameWindow[] = [];
    for (const { firstFrame, frameCount } of windows)
      this.#guest.visitPresent(firstFrame, frameCount, (first, count) =>
        present.push({ firstFrame: first, frameCount: count }),
      );
    return countOf(present) - this.#deps.domain.info().totalPages;
  }

  #known(): KnownMemory {
    if (this.#memory === undefined) throw new RangeError('memoryLayout() comes first');
    return this.#memory;
  }
}

function allowsUnproven(): boolean {
  return process.env.CAIRN_XEN_UNPROVEN === '1';
}

function countOf(stretches: readonly FrameWindow[]): number {
  return stretches.reduce((sum, { frameCount }) => sum + frameCount, 0);
}

function logDirtyReport(isHvm: boolean, hasHap: boolean): TrackerReport {
  if (isHvm && hasHap) {
    return {
      kind: LOG_DIRTY_KIND,
      usable: true,
      reason:
        "the hypervisor's own dirty bitmap, exact to the page; ballooning is covered by a scan of page types",
    };
  }
  return {
    kind: LOG_DIRTY_KIND,
    usable: false,
    reason: isHvm
      ? 'the domain has no hardware-assisted paging'
      : 'the hypervisor tracks PV guests only when it is built with shadow paging',
  };
}
