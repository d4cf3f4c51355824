/**
 * A domain of libvirt as the core sees it: a QEMU like any other, whose monitor, pauses and identity go
 * through libvirt.
 */

import type { VmDeviceState } from '../../src/hypervisor/device-state.js';
import type { VmFreezer } from '../../src/hypervisor/freezer.js';
import type { AttachOptions } from '../../src/hypervisor/hypervisor.js';
import type { VmDisk, VmDisks } from '../../src/hypervisor/disks.js';
import type { VmMemory } from '../../src/hypervisor/memory.js';
import type { PauseRequest, VmRunState } from '../../src/hypervisor/run-state.js';
import type { Vm, VmIdentity, VmProcess, VmReport } from '../../src/hypervisor/vm.js';
import { CheckpointError } from '../../src/errors.js';
import type { JsonObject } from '../../src/types.js';
import { DriverDisks, folderOf } from '../disks/disk-drivers.js';
import { monitorImages } from '../disks/qcow2/monitor-snapshots.js';
import { KvmVm } from '../kvm/kvm-vm.js';
import { listDisks } from '../qemu/block-devices.js';
import type { Monitor } from '../qemu/monitor.js';
import { sweepRuntimeDir } from '../qemu/runtime-files.js';
import { LIBVIRT_NAME, parseDomainAddress } from './address.js';
import { libvirtOverlays } from './qemu/external-snapshot.js';
import { LibvirtConnection } from './native/connection.js';
import { DomainAgent } from './qemu/domain-agent.js';
import { domainProcess } from './domain-process.js';
import { LibvirtDomain } from './domain.js';
import { disksIn, type DomainDisk } from './xml/domain-disks.js';
import { LibvirtMonitor } from './qemu/monitor.js';
import { libvirtGuard } from './qemu/pauses.js';
import { streamManager } from './qemu/stream-manager.js';

interface Parts {
  readonly qemu: KvmVm;
  readonly monitor: Monitor;
  readonly diskOptions: AttachOptions['diskOptions'];
  readonly domain: LibvirtDomain;
  readonly xml: string;
  readonly waitJobMs: number | undefined;
  readonly signal: AbortSignal | undefined;
}

/** @throws VM_ADDRESS, VM_UNSUPPORTED, VM_UNREACHABLE, VM_PERMISSION, VM_STATE, VM_GONE */
export async function attachDomain(
  address: string,
  { runtimeDir, waitJobMs, guestAgent, diskOptions, signal }: AttachOptions,
): Promise<LibvirtVm> {
  const { uri, domain: wanted } = parseDomainAddress(address);
  if (guestAgent !== undefined) {
    throw new CheckpointError(
      'USAGE',
      '--guest-agent makes no sense here: libvirt holds the socket of the agent',
    );
  }
  const connection = await LibvirtConnection.open(uri);
  try {
    signal?.throwIfAborted();
    const domain = await LibvirtDomain.find(connection, wanted);
    const state = await domain.state();
    if (state !== 'running' && state !== 'paused') {
      throw new CheckpointError('VM_STATE', `the domain ${domain.name} does not run`, {
        hint: `virsh start ${domain.name}`,
      });
    }
    await domain.awaitNoJob(waitJobMs, signal);
    const process = await domainProcess(domain);
    await sweepRuntimeDir(runtimeDir);
    const monitor = new LibvirtMonitor(domain);
    const qemu = await KvmVm.attach(
      { address, runtimeDir, socketPath: '', diskOptions },
      {
        monitor,
        process,
        guard: libvirtGuard(domain),
        agent: new DomainAgent(domain),
        streamManager: streamManager(domain, waitJobMs, signal),
      },
    );
    return new LibvirtVm({ qemu, monitor, domain, diskOptions, waitJobMs, signal, xml: await domain.xml() });
  } catch (error) {
    await connection.close();
    throw error;
  }
}

export class LibvirtVm implements Vm {
  readonly address: string;
  readonly identity: VmIdentity;
  readonly process: VmProcess;
  readonly disks: VmDisks;
  readonly memory: VmMemory;
  readonly runState: VmRunState;
  readonly deviceState: VmDeviceState;
  readonly freezer: VmFreezer;
  readonly #parts: Parts;
  #xml: string;

  constructor(parts: Parts) {
    const { qemu, domain, monitor } = parts;
    this.address = qemu.address;
    this.identity = {
      ...qemu.identity,
      hypervisor: LIBVIRT_NAME,
      name: domain.name,
      uuid: domain.uuid,
    };
    this.process = qemu.process;
    this.memory = qemu.memory;
    this.runState = {
      read: () => qemu.runState.read(),
      prepare: () => qemu.runState.prepare(),
      pause: (request) => this.#pause(request),
      resume: (running) => qemu.runState.resume(running),
    };
    this.deviceState = qemu.deviceState;
    this.freezer = qemu.freezer;
    this.#parts = parts;
    this.#xml = parts.xml;
    this.disks = new DriverDisks({
      list: async () => {
        // The first that a checkpoint asks for, also of a domain that is paused already.
        this.#xml = await domain.xml();
        return listDisks(monitor);
      },
      foreign: () => disksIn(this.#xml).flatMap((disk) => (disk.type === 'vhostuser' ? asForeign(disk) : [])),
      cwd: folderOf(qemu.machine),
      // libvirt takes an internal snapshot of a running domain only together with its memory: those are
      // QEMU's own.
      images: monitorImages(monitor),
      overlays: libvirtOverlays(domain, () => this.#xml),
      options: parts.diskOptions,
    });
  }

  /** What KVM records of a QEMU, and besides: domainXml as of the last pause, libvirtUri. */
  get machine(): JsonObject {
    const { qemu, domain } = this.#parts;
    return { ...qemu.machine, domainXml: this.#xml, libvirtUri: domain.connection.uri };
  }

  get recovered(): readonly string[] {
    return this.#parts.qemu.recovered;
  }

  inspect(): Promise<VmReport> {
    return this.#parts.qemu.inspect();
  }

  /** The connection to libvirt ends with it. */
  close(): Promise<void> {
    return this.#parts.qemu.close();
  }

  async #pause(request: PauseRequest | undefined): Promise<boolean> {
    const { qemu, domain, waitJobMs, signal } = this.#parts;
    await domain.awaitNoJob(waitJobMs, signal);
    // Devices come and go with hotplug. Read before the pause; libvirt takes some milliseconds for it.
    this.#xml = await domain.xml();
    return qemu.runState.pause(request);
  }
}

/** A disk that another process serves: QEMU knows only the device, and nobody here can snapshot it. */
function asForeign({ target, path, format, isWritable }: DomainDisk): VmDisk {
  return { id: target, path, format, writable: isWritable, virtualSizeBytes: 0, snapshotModes: [] };
}
