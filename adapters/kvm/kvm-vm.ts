/** A running QEMU as the core sees it. The parts are in the files beside; this one puts them together. */

import { CheckpointError } from '../../src/errors.js';
import type { DirtyTracker } from '../../src/hypervisor/dirty-tracker.js';
import type { GuestReaderDescription } from '../../src/hypervisor/guest-reader.js';
import { layOut, type MemoryLayout } from '../../src/hypervisor/memory-layout.js';
import type { VmDisks } from '../../src/hypervisor/disks.js';
import type { DiskDriverOptions } from '../../src/hypervisor/hypervisor.js';
import type { RunState, Vm, VmIdentity, VmReport } from '../../src/hypervisor/vm.js';
import type { JsonObject } from '../../src/types.js';
import { DriverDisks, folderOf } from '../disks/disk-drivers.js';
import { monitorImages, monitorOverlays } from '../disks/qcow2/monitor-snapshots.js';
import { listDisks } from '../qemu/block-devices.js';
import { COMPARE_KIND, compareReport, CompareTracker } from './trackers/compare-tracker.js';
import { DeviceState } from '../qemu/device-state.js';
import { describeGuestReader } from './memory/guest-reader.js';
import type { GuestAgent } from './run/guest-agent/guest-agent.js';
import { recordedAgentPath } from './run/guest-agent/agent-path.js';
import { GuestFreezer } from './run/guest-agent/guest-freezer.js';
import { SocketAgent } from './run/guest-agent/socket-agent.js';
import { hazardsOf, takeInventory } from './inspect/hazards.js';
import { kvmDirtyLogReport } from './trackers/dirty-log/support.js';
import { machineFacts, type MachineFacts } from './inspect/machine-facts.js';
import type { Monitor } from '../qemu/monitor.js';
import { PAGEMAP_SCAN_KIND, pagemapScanReport } from './trackers/pagemap-scan/support.js';
import { PagemapScanTracker } from './trackers/pagemap-scan/tracker.js';
import { qmpGuard, type GuardProgram } from '../guard/pause-guard.js';
import { frozenMarkerPath } from '../guard/pause-marker.js';
import type { QemuProcess } from '../qemu/peer-process.js';
import { mayReadMemory } from './memory/process-access.js';
import { memoryPermission } from './memory/process-memory.js';
import type { StreamManager } from './trackers/qmp-stream/stream-manager.js';
import { recoverStream, streamMarkerPath } from './trackers/qmp-stream/stream-marker.js';
import { QMP_STREAM_KIND, qmpStreamReport } from './trackers/qmp-stream/support.js';
import { QmpStreamTracker } from './trackers/qmp-stream/tracker.js';
import type { QuietVm } from './trackers/quiet-vm.js';
import { listRamBlocks, RamBlocks, type RamBlock } from './memory/ram-blocks.js';
import { RunStateControl } from './run/run-state.js';
import { SOFT_DIRTY_KIND, softDirtyReport } from './trackers/soft-dirty/support.js';
import { SoftDirtyTracker } from './trackers/soft-dirty/tracker.js';

export interface KvmVmOptions {
  readonly address: string;
  readonly runtimeDir: string;
  /** Absolute path of the monitor's socket; empty when there is none of our own. */
  readonly socketPath: string;
  /** Socket of the guest's agent, absolute; default: the one that QEMU's command line has. */
  readonly agentPath?: string | undefined;
  readonly diskOptions?: DiskDriverOptions | undefined;
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

interface KnownMemory {
  readonly layout: MemoryLayout;
  /** Undefined when this process may not read QEMU's memory. */
  readonly blocks: readonly RamBlock[] | undefined;
}

export class KvmVm implements Vm {
  readonly address: string;
  readonly identity: VmIdentity;
  readonly machine: JsonObject;
  readonly disks: VmDisks;
  readonly #options: KvmVmOptions;
  readonly #deps: KvmVmDeps;
  readonly #ramBlocks: RamBlocks;
  readonly #runState: RunStateControl;
  readonly #freezer: GuestFreezer;
  #memory: KnownMemory | undefined;
  #deviceState: Promise<DeviceState> | undefined;
  /** The same once it is there. */
  #openDevices: DeviceState | undefined;
  /** This process holds the VM paused. */
  #isHeld = false;
  #savesUnderWay = 0;
  #disturbances = 0;
  /** Set while memory and device state come by migration. */
  #stream: QmpStreamTracker | undefined;

  private constructor(options: KvmVmOptions, deps: KvmVmDeps, { identity, machine }: MachineFacts) {
    this.address = options.address;
    this.identity = identity;
    this.machine = machine;
    this.#options = options;
    this.#deps = deps;
    this.disks = new DriverDisks({
      list: () => listDisks(deps.monitor),
      cwd: folderOf(machine),
      images: monitorImages(deps.monitor),
      overlays: monitorOverlays(deps.monitor),
      options: options.diskOptions,
    });
    this.#ramBlocks = new RamBlocks(deps.monitor, deps.process, options.runtimeDir);
    const agentPath = deps.agent === undefined ? (options.agentPath ?? recordedAgentPath(machine)) : '';
    this.#runState = new RunStateControl({
      monitor: deps.monitor,
      process: deps.process,
      guard: deps.guard ?? qmpGuard(options.socketPath, agentPath),
      runtimeDir: options.runtimeDir,
    });
    this.#freezer = new GuestFreezer({
      agent: deps.agent ?? (agentPath === '' ? undefined : new SocketAgent(agentPath)),
      agentPath,
      markerPath: frozenMarkerPath(options.runtimeDir, deps.process),
      owner: () => this.#runState.owner(),
      guard: () => this.#runState.guard(),
      releaseGuard: () => this.#runState.releaseGuard(),
      isRunning: async () => (await this.#runState.read()) === 'running',
    });
  }

  /** Changes nothing, except that a VM which a killed Cairn left paused is resumed. @throws VM_GONE, VM_PERMISSION, QMP_COMMAND, USAGE */
  static async attach(options: KvmVmOptions, deps: KvmVmDeps): Promise<KvmVm> {
    const vm = new KvmVm(options, deps, await machineFacts(deps.monitor, deps.process, options.socketPath));
    const hadStream = await recoverStream(streamMarkerPath(options.runtimeDir, deps.process), deps.monitor);
    if (hadStream)
      process.emitWarning(`${options.address}: ended the migration to a Cairn that was killed meanwhile`);
    if (await vm.#runState.recover()) {
      process.emitWarning(
        `${options.address} was left paused by a Cairn that was killed, and has been resumed`,
      );
    }
    if (await vm.#freezer.recover()) {
      process.emitWarning(
        `${options.address} was left with frozen file systems by a Cairn that was killed, and has been thawed`,
      );
    }
    return vm;
  }

  async memoryLayout(): Promise<MemoryLayout> {
    const blocks = await this.#readableBlocks();
    this.#memory = { layout: layOut(blocks ?? (await listRamBlocks(this.#deps.monitor))), blocks };
    return this.#memory.layout;
  }

  guestReader(): GuestReaderDescription {
    if (this.#stream !== undefined) return this.#stream.guestReader();
    const { layout, blocks } = this.#readable();
    return describeGuestReader(this.#deps.process, layout, blocks);
  }

  async inspect(): Promise<VmReport> {
    const { monitor, process } = this.#deps;
    const blocks = await this.#readableBlocks();
    const { sizeBytes } = layOut(blocks ?? (await listRamBlocks(monitor)));
    return {
      trackers: [
        pagemapScanReport(process.pid),
        softDirtyReport(process.pid, blocks ?? []),
        kvmDirtyLogReport,
        compareReport(process.pid),
        await qmpStreamReport(monitor, {
          memoryBytes: sizeBytes,
          seesSharers: blocks !== undefined,
        }),
      ],
      hazards: hazardsOf(await takeInventory(monitor, process.pid, blocks ?? [])),
    };
  }

  tracker(kind: string): DirtyTracker {
    this.#stream = undefined;
    if (kind === QMP_STREAM_KIND) return this.#streamTracker();
    const options = {
      process: this.#deps.process,
      runtimeDir: this.#options.runtimeDir,
      quiet: this.#quiet(),
      ...this.#readable(),
    };
    // Whoever asks for a tracker is about to take checkpoints. What a pause needs gets ready in the meantime.
    this.#prepare();
    if (kind === PAGEMAP_SCAN_KIND) return new PagemapScanTracker(options);
    if (kind === SOFT_DIRTY_KIND) return new SoftDirtyTracker(options);
    if (kind === COMPARE_KIND) return new CompareTracker(options);
    throw new CheckpointError('TRACKER_UNAVAILABLE', `there is no tracker called "${kind}"`, {
      hint: `known: ${PAGEMAP_SCAN_KIND}, ${SOFT_DIRTY_KIND}, ${COMPARE_KIND}, ${QMP_STREAM_KIND}`,
    });
  }

  runState(): Promise<RunState> {
    return this.#runState.read();
  }

  async pause(stopping?: () => void): Promise<boolean> {
    if (this.#stream !== undefined) return this.#stream.capture.pause();
    await this.#devices();
    this.#isHeld = await this.#runState.pause({ stopping });
    return this.#isHeld;
  }

  async resume(running?: () => void): Promise<void> {
    if (this.#stream !== undefined) return this.#stream.capture.resume();
    this.#isHeld = false;
    try {
      await this.#runState.resume(running);
    } catch (error) {
      this.#disturbances++;
      throw error;
    }
  }

  async saveDeviceState(): Promise<void> {
    if (this.#stream !== undefined) return this.#stream.capture.complete();
    // Without a wait when it is open, so that QEMU is at work already while the caller goes on with the harvest.
    const devices = this.#openDevices ?? (await this.#devices());
    this.#savesUnderWay++;
    try {
      await devices.save();
    } finally {
      this.#savesUnderWay--;
    }
  }

  async takeDeviceState(): Promise<Uint8Array> {
    if (this.#stream !== undefined) return this.#stream.capture.take();
    return (await this.#devices()).take();
  }

  freeze(limitMs: number): Promise<number> {
    return this.#freezer.freeze(limitMs);
  }

  thaw(): Promise<void> {
    return this.#freezer.thaw();
  }

  async close(): Promise<void> {
    const devices = await this.#deviceState?.catch(() => undefined);
    this.#deviceState = undefined;
    this.#openDevices = undefined;
    await devices?.close();
    this.#freezer.close();
    await this.#runState.close();
    await this.#deps.monitor.close();
  }

  #known(): KnownMemory {
    if (this.#memory === undefined) throw new RangeError('memoryLayout() comes first');
    return this.#memory;
  }

  #quiet(): QuietVm {
    return {
      isHeld: () => this.#isHeld,
      disturbances: () => this.#disturbances,
      isQuiet: () => this.#isHeld && this.#savesUnderWay === 0,
      whileQuiet: async (work) => {
        if (this.#isHeld) return work();
        this.#isHeld = await this.#runState.pause();
        try {
          return work();
        } finally {
          if (this.#isHeld) await this.resume();
        }
      },
    };
  }

  /** What trackers and readers of process memory work on. @throws VM_PERMISSION */
  #readable(): { readonly layout: MemoryLayout; readonly blocks: readonly RamBlock[] } {
    const { layout, blocks } = this.#known();
    if (blocks === undefined) throw memoryPermission(this.#deps.process.pid);
    return { layout, blocks };
  }

  async #readableBlocks(): Promise<readonly RamBlock[] | undefined> {
    return mayReadMemory(this.#deps.process.pid) ? await this.#ramBlocks.list() : undefined;
  }

  #streamTracker(): QmpStreamTracker {
    const { monitor, process, streamManager: manager } = this.#deps;
    const { runtimeDir, socketPath } = this.#options;
    const stream = new QmpStreamTracker({
      monitor,
      process,
      manager,
      runtimeDir,
      runState: this.#runState,
      layout: this.#known().layout,
      socketPath,
    });
    this.#runState.prepare().catch(() => undefined);
    this.#stream = stream;
    return stream;
  }

  #devices(): Promise<DeviceState> {
    this.#deviceState ??= DeviceState.open(this.#deps.monitor).then((open) => (this.#openDevices = open));
    return this.#deviceState;
  }

  #prepare(): void {
    // A failure shows again, and is reported, when the pause needs it.
    this.#devices().catch(() => (this.#deviceState = undefined));
    this.#runState.prepare().catch(() => undefined);
  }
}
