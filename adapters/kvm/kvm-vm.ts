/** A running QEMU as the core sees it. The parts are in the files beside; this one puts them together. */

import { readForkNote } from '../../src/host/fork-note.js';
import type { VmDisks } from '../../src/hypervisor/disks.js';
import type { ForkOrigin } from '../../src/hypervisor/fork-origin.js';
import type { DiskDriverOptions } from '../../src/hypervisor/hypervisor.js';
import type { RecordedVm, Vm, VmIdentity, VmProcess, VmReport } from '../../src/hypervisor/vm.js';
import type { JsonObject } from '../../src/types.js';
import { DriverDisks, folderOf } from '../disks/disk-drivers.js';
import { monitorImages, monitorOverlays } from '../disks/qcow2/monitor-snapshots.js';
import { listDisks } from '../qemu/block-devices.js';
import type { GuestAgent } from './run/guest-agent/guest-agent.js';
import { recordedAgentPath } from './run/guest-agent/agent-path.js';
import { GuestFreezer } from './run/guest-agent/guest-freezer.js';
import { SocketAgent } from './run/guest-agent/socket-agent.js';
import { hazardsOf, takeInventory } from './inspect/hazards.js';
import { differencesBetween } from './inspect/same-machine.js';
import { machineFacts, type MachineFacts } from './inspect/machine-facts.js';
import { PresentMachine } from './inspect/present-machine.js';
import { askedOnce } from '../qemu/asked-once.js';
import type { Monitor } from '../qemu/monitor.js';
import type { GuardProgram } from '../guard/pause-guard.js';
import { qmpGuard } from './run/qmp-guard.js';
import { frozenMarkerPath } from '../guard/pause-marker.js';
import type { QemuProcess } from '../qemu/peer-process.js';
import type { StreamManager } from './trackers/qmp-stream/stream-manager.js';
import { recoverStream, streamMarkerPath } from './trackers/qmp-stream/stream-marker.js';
import { KvmMemory } from './memory/kvm-memory.js';
import { KvmRewind } from './rewind/kvm-rewind.js';
import { refuseUnfinished, unfinishedHazards } from './rewind/unfinished.js';
import { KvmDeviceState } from './run/kvm-device-state.js';
import { KvmRunState } from './run/kvm-run-state.js';
import { RunStateControl } from './run/run-state.js';
import { KvmTrackers } from './trackers/kvm-trackers.js';

export interface KvmVmOptions {
  readonly address: string;
  readonly runtimeDir: string;
  /** Absolute path of the monitor's socket; empty when there is none of our own. */
  readonly socketPath: string;
  /** Socket of the guest's agent, absolute; default: the one that QEMU's command line has. */
  readonly agentPath?: string | undefined;
  readonly diskOptions?: DiskDriverOptions | undefined;
  readonly allowChangedMachine?: boolean | undefined;
}

export interface KvmVmDeps {
  /** Closed together with the VM. */
  readonly monitor: Monitor;
  readonly process: QemuProcess;
  /** Default: the one that uses the monitor's socket. */
  readonly guard?: GuardProgram;
  /** The guest's agent, where a manager holds its socket. */
  readonly agent?: GuestAgent;
  /** A manager that holds the monitor. */
  readonly streamManager?: StreamManager;
}

export class KvmVm implements Vm {
  readonly address: string;
  readonly identity: VmIdentity;
  readonly process: VmProcess;
  readonly disks: VmDisks;
  readonly memory: KvmMemory;
  readonly runState: KvmRunState;
  readonly deviceState: KvmDeviceState;
  readonly freezer: GuestFreezer;
  readonly rewind: KvmRewind;
  readonly forkedFrom: ForkOrigin | undefined;
  readonly recovered: string[] = [];
  readonly #deps: KvmVmDeps;
  readonly #machine: JsonObject;
  /** Absent where a manager describes the machine. */
  readonly #present: PresentMachine | undefined;
  readonly #control: RunStateControl;
  readonly #trackers: KvmTrackers;

  private constructor(options: KvmVmOptions, deps: KvmVmDeps, { identity, machine }: MachineFacts) {
    const { monitor, process, streamManager } = deps;
    const { runtimeDir, socketPath } = options;
    this.address = options.address;
    this.identity = identity;
    this.process = process;
    this.forkedFrom = readForkNote(runtimeDir, process);
    this.#machine = machine;
    this.#present =
      socketPath === ''
        ? undefined
        : new PresentMachine(monitor, process.pid, machine, options.allowChangedMachine === true);
    this.#deps = deps;
    this.disks = new DriverDisks({
      list: () => listDisks(monitor, folderOf(machine)),
      cwd: folderOf(machine),
      images: monitorImages(monitor),
      overlays: monitorOverlays(monitor),
      options: options.diskOptions,
    });
    const agentPath = deps.agent === undefined ? (options.agentPath ?? recordedAgentPath(machine)) : '';
    const control = new RunStateControl({
      monitor,
      process,
      guard: deps.guard ?? qmpGuard(socketPath, agentPath),
      runtimeDir,
    });
    this.#control = control;
    this.freezer = new GuestFreezer({
      agent: deps.agent ?? (agentPath === '' ? undefined : new SocketAgent(agentPath)),
      agentPath,
      markerPath: frozenMarkerPath(runtimeDir, process),
      owner: () => Promise.resolve(control.owner()),
      guard: () => control.guard(),
      releaseGuard: () => control.releaseGuard(),
      isRunning: async () => (await control.read()) === 'running',
    });
    const deviceState = new KvmDeviceState(monitor, this.#present, {
      mustHold: () => control.mustHold(),
      mayBegin: () => refuseUnfinished(this.rewind.unfinished()),
    });
    this.deviceState = deviceState;
    this.runState = new KvmRunState(control, deviceState);
    const trackers = new KvmTrackers({
      monitor,
      process,
      runtimeDir,
      socketPath,
      runState: control,
      quiet: this.runState.quiet(),
      streamManager,
      prepareDevices: () => deviceState.prepare(),
    });
    this.#trackers = trackers;
    this.memory = new KvmMemory({
      monitor,
      process,
      runtimeDir,
      openTracker: (kind, memory) => trackers.open(kind, memory),
    });
    const look = (): ReturnType<KvmMemory['look']> => this.memory.look();
    this.rewind = new KvmRewind({ monitor, process, control, runState: this.runState, deviceState, look });
  }

  /**
   * Changes nothing, except that a VM which a killed Cairn left paused is resumed.
   * @throws VM_GONE, VM_PERMISSION, QMP_COMMAND, USAGE
   */
  static async attach(options: KvmVmOptions, deps: KvmVmDeps): Promise<KvmVm> {
    const vm = new KvmVm(options, deps, await machineFacts(deps.monitor, deps.process, options.socketPath));
    const { address, runtimeDir } = options;
    if (await recoverStream(streamMarkerPath(runtimeDir, deps.process), deps.monitor))
      vm.#hasRecovered(`${address}: ended the migration to a Cairn that was killed meanwhile`);
    if (await vm.#control.recover())
      vm.#hasRecovered(`${address} was left paused by a Cairn that was killed, and has been resumed`);
    if (await vm.freezer.recover()) {
      vm.#hasRecovered(
        `${address} was left with frozen file systems by a Cairn that was killed, and has been thawed`,
      );
    }
    return vm;
  }

  /** With the disks as they were right before the last checkpoint. */
  get machine(): JsonObject {
    return { ...this.#machine, ...this.#present?.record };
  }

  #hasRecovered(text: string): void {
    this.recovered.push(text);
    process.emitWarning(text);
  }

  async differencesFrom(before: RecordedVm): Promise<readonly string[]> {
    const { identity, machine } = this;
    return differencesBetween(before, { identity, machine, layout: await this.memory.layout() });
  }

  async inspect(): Promise<VmReport> {
    const monitor = askedOnce(this.#deps.monitor);
    const present = this.#present?.hazards(monitor) ?? Promise.resolve([]);
    // Waited for below; what fails first must not leave it unhandled.
    present.catch(() => undefined);
    const { layout, blocks } = await this.memory.look();
    const [trackers, inventory, changes] = await Promise.all([
      this.#trackers.reports(monitor, layout.sizeBytes, blocks),
      takeInventory(monitor, this.#deps.process.pid, blocks ?? []),
      present,
    ]);
    return {
      trackers,
      hazards: [...unfinishedHazards(this.rewind.unfinished()), ...hazardsOf(inventory), ...changes],
    };
  }

  async close(): Promise<void> {
    await this.deviceState.close();
    this.freezer.close();
    await this.#control.close();
    await this.#deps.monitor.close();
  }
}
