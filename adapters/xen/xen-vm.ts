/** A running domain as the core sees it. The parts are in the files beside; this one puts them together. */

import { existsSync } from 'node:fs';

import { CheckpointError } from '../../src/errors.js';
import type { DirtyTracker, TrackerReport } from '../../src/hypervisor/dirty-tracker.js';
import type { VmDisks } from '../../src/hypervisor/disks.js';
import type { DiskDriverOptions } from '../../src/hypervisor/hypervisor.js';
import type { VmRunState } from '../../src/hypervisor/run-state.js';
import type { Vm, VmIdentity, VmReport } from '../../src/hypervisor/vm.js';
import { DriverDisks } from '../disks/disk-drivers.js';
import type { GuardProgram } from '../guard/pause-guard.js';
import type { JsonObject } from '../../src/types.js';
import { COMPARE_KIND, compareReport, CompareTracker } from './trackers/compare-tracker.js';
import { disksOf, UNTRIED_DRIVERS } from './devices/disks.js';
import { deviceModelProblem, type DeviceModel } from './devices/device-model.js';
import type { XenDomain } from './domain/domain.js';
import { PvGuestMemory, TranslatedMemory, type GuestMemory } from './memory/guest-memory.js';
import { deviceModelInventory } from './inspect/device-model-hazards.js';
import { guestKind, hazardsOf } from './inspect/hazards.js';
import { recordPath } from './trackers/log-dirty-record.js';
import { LOG_DIRTY_KIND, LogDirtyTracker } from './trackers/log-dirty-tracker.js';
import { videoKibOf, withMemoryTarget } from './domain/memory-target.js';
import { Qcow2Disks } from './devices/qcow2-disks.js';
import { XenMemory, type KnownXenMemory } from './memory/xen-memory.js';
import { ANSWER_LIMIT_MS, SuspendControl } from './suspend/run-state.js';
import { XenDeviceState } from './suspend/xen-device-state.js';
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
  /** The device model of an HVM guest. */
  readonly deviceModel?: DeviceModel | undefined;
}

export class XenVm implements Vm {
  readonly address: string;
  readonly identity: VmIdentity;
  readonly disks: VmDisks;
  readonly memory: XenMemory;
  readonly runState: VmRunState;
  readonly deviceState: XenDeviceState;
  readonly recovered: string[] = [];
  readonly #options: XenVmOptions;
  readonly #deps: XenVmDeps;
  readonly #control: SuspendControl;
  readonly #guest: GuestMemory;
  readonly #guestKind: string;
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
    const guest =
      kind === 'pv' ? new PvGuestMemory(domain, options.runtimeDir) : new TranslatedMemory(domain);
    this.#guest = guest;
    this.disks = new DriverDisks({
      list: () => Promise.resolve(disksOf(options.config)),
      cwd: '/',
      images: new Qcow2Disks(domain.domid, deviceModel?.exchange),
      untried: UNTRIED_DRIVERS,
      options: options.diskOptions,
    });
    const control = new SuspendControl({
      domain,
      uuid: options.uuid,
      runtimeDir: options.runtimeDir,
      instance: this.identity.instance,
      foreignSave,
      deviceModel,
      ...(guard === undefined ? {} : { guard }),
    });
    this.#control = control;
    const memory = new XenMemory({
      domain,
      guest,
      stopNumber: control.stopNumber,
      openTracker: (kind, known) => this.#openTracker(kind, known),
    });
    this.memory = memory;
    this.runState = {
      // A failure is a rejection, as everywhere in the contract.
      // eslint-disable-next-line @typescript-eslint/require-await -- see above
      read: async () => control.read(),
      slowestStopMs: ANSWER_LIMIT_MS,
      pause: async (request) => {
        const stopped = await control.pause(request);
        guest.stopped();
        return stopped;
      },
      resume: async (running) => {
        await control.resume();
        running?.();
        guest.running();
      },
    };
    this.deviceState = new XenDeviceState({
      domain,
      guest,
      known: () => memory.known(),
      deviceModel,
      videoKib: deviceModel === undefined ? 0 : videoKibOf(options.config),
    });
  }

  /**
   * Changes nothing, except that a guest which a killed Cairn left suspended is resumed.
   * @throws VM_GONE, FFI_FAILED, USAGE
   */
  static async attach(options: XenVmOptions, deps: XenVmDeps): Promise<XenVm> {
    const vm = new XenVm(options, deps);
    if (await vm.#control.recover()) {
      const text = `${options.address} was left suspended by a Cairn that was killed, and has been resumed`;
      vm.recovered.push(text);
      process.emitWarning(text);
    }
    if (deps.deviceModel !== undefined)
      vm.#deviceModelProblem = await deviceModelProblem(deps.deviceModel, allowsUnproven());
    return vm;
  }

  /** The machine as it was in the last stop. */
  get machine(): JsonObject {
    const { config } = this.#options;
    const { memoryTarget } = this.deviceState;
    const { version } = this.#deps.domain.calls;
    return {
      config: memoryTarget === undefined ? config : withMemoryTarget(config, memoryTarget),
      guestKind: this.#guestKind,
      xenMajor: version.major,
      xenMinor: version.minor,
    };
  }

  inspect(): Promise<VmReport> {
    const { domain, foreignSave, deviceModel } = this.#deps;
    const info = domain.info();
    return Promise.resolve({
      trackers: [logDirtyReport(info.isHvm, info.hasHap, this.#isTracking()), compareReport],
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

  async close(): Promise<void> {
    await this.#control.close();
    this.#guest.running();
    this.#deps.domain.calls.close();
  }

  /** Whether a session has left Xen's log of dirty pages on. */
  #isTracking(): boolean {
    return existsSync(recordPath(this.#options.runtimeDir, this.identity.instance));
  }

  #openTracker(kind: string, { layout, scan }: KnownXenMemory): DirtyTracker {
    const { domain, foreignSave, deviceModel } = this.#deps;
    // Whoever asks for a tracker is about to take checkpoints, and alone. The guard gets ready in the
    // meantime.
    this.#guest.discardLeftovers();
    this.#control.prepare().catch(() => undefined);
    if (kind === LOG_DIRTY_KIND) {
      return new LogDirtyTracker({
        domain,
        layout,
        recordPath: recordPath(this.#options.runtimeDir, this.identity.instance),
        presence: scan,
        isStopped: () => domain.info().isSuspended,
        foreignSave,
        ...(deviceModel === undefined ? {} : { reportWrites: () => deviceModel.reportWrites() }),
      });
    }
    if (kind === COMPARE_KIND) return new CompareTracker(layout, scan);
    throw new CheckpointError('TRACKER_UNAVAILABLE', `there is no tracker called "${kind}"`, {
      hint: `known: ${LOG_DIRTY_KIND}, ${COMPARE_KIND}`,
    });
  }
}

function allowsUnproven(): boolean {
  return process.env.CAIRN_XEN_UNPROVEN === '1';
}

function logDirtyReport(isHvm: boolean, hasHap: boolean, isArmed: boolean): TrackerReport {
  if (isHvm && hasHap) {
    return {
      kind: LOG_DIRTY_KIND,
      usable: true,
      reason:
        "the hypervisor's own dirty bitmap, exact to the page; ballooning is covered by a scan of page types",
      ...(isArmed ? { armed: true } : {}),
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
