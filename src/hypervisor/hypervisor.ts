/** The contract of a hypervisor adapter, and the registry through which the CLI and the library find one. */

import type { Writable } from 'node:stream';

import { CheckpointError } from '../errors.js';
import type { JsonObject } from '../types.js';
import type { MemoryLayout } from './memory-layout.js';
import type { DiskSnapshot, FrozenGuest, Vm, VmIdentity } from './vm.js';

/** Pages in ascending order. `bytes` is null for a run of zero pages, otherwise pageCount x 4096 bytes valid until the next chunk. */
export interface PageChunk {
  readonly firstPage: number;
  readonly pageCount: number;
  readonly bytes: Uint8Array | null;
}

/** One checkpoint as a restore or an export needs it, verified while it is read. */
export interface CheckpointSource {
  readonly checkpointId: string;
  readonly hypervisor: string;
  /** `Vm.machine` as it was recorded. */
  readonly machine: JsonObject;
  readonly machineType: string;
  readonly layout: MemoryLayout;
  readonly disks: readonly DiskSnapshot[];
  /** Set when the guest's file systems were frozen, and so are in this memory; see `Vm.freeze`. */
  readonly frozen?: FrozenGuest | undefined;
  deviceState(): Promise<Uint8Array>;
  /** All pages of all regions, region by region. @throws REPO_DAMAGED */
  pages(signal?: AbortSignal): AsyncIterable<PageChunk>;
}

/** Changes to a machine that a manager such as libvirt describes and starts. */
export interface DescriptionEdits {
  /** Another name, and with it another UUID. */
  readonly newName?: string;
  readonly newMacs: boolean;
  /** Disks that lie elsewhere now, each `DISK=PATH`, DISK as the manager calls it. */
  readonly diskPaths: readonly string[];
  /** Shell command: gets the description on stdin, writes the changed one to stdout. */
  readonly command?: string;
}

export interface RestoreRequest {
  /** Undefined: start a new VM. Otherwise an address that waits for an incoming stream, such as unix:/path or tcp:host:port. */
  readonly target?: string;
  /** Replace (or add) arguments of the recorded command line, each `-option=value` or `-flag`. */
  readonly setArgs: readonly string[];
  readonly dropArgs: readonly string[];
  /** Only where a manager starts the VM. */
  readonly edits?: DescriptionEdits;
  /** Another program than the recorded one. */
  readonly program?: string;
  /** Where the new VM takes commands; default: as recorded. */
  readonly socketPath?: string;
  readonly paused: boolean;
  /** Leave the disks as they are instead of rolling them back to the checkpoint. */
  readonly keepDisks: boolean;
  readonly logPath?: string;
  /** Socket of the agent in the restored guest, where it is not found by itself. */
  readonly guestAgent?: string;
  readonly signal?: AbortSignal;
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

export interface RestoreResult {
  /** Address of the restored VM, empty when it was given by stream address. */
  readonly vmAddress: string;
  /** 0 where a VM is no process of this host (Xen). */
  readonly pid: number;
  readonly running: boolean;
  readonly streamBytes: number;
  /** The guest's file systems are frozen as in the checkpoint, and this says why they were not thawed. */
  readonly frozenBecause?: string;
}

export interface Hypervisor {
  /** `kvm`, `xen`: what a manifest records. */
  readonly name: string;
  /** Schemes of VM addresses that it serves, such as `qmp`. */
  readonly schemes: readonly string[];
  /** Formats of `exportTo`. */
  readonly exportFormats: readonly string[];
  /** Attaches to a VM without changing its state. @throws VM_ADDRESS, VM_UNREACHABLE, VM_BUSY, VM_PERMISSION, VM_UNSUPPORTED */
  attach(address: string, options: AttachOptions): Promise<Vm>;
  /** @throws RESTORE_TARGET_BUSY, RESTORE_FAILED, VM_UNSUPPORTED, STREAM_MALFORMED */
  restore(source: CheckpointSource, request: RestoreRequest): Promise<RestoreResult>;
  /**
   * Removes snapshots of disks (`internal`, `lvm`) of a VM that does not run; one that is gone already is no failure. Absent where no VM
   * has any.
   * @param machine `Vm.machine` as it was recorded
   * @throws DISK_SNAPSHOT_FAILED naming what stays behind, for example because somebody has the image open
   */
  dropDiskSnapshots?(machine: JsonObject, snapshots: readonly DiskSnapshot[]): Promise<void>;
  /** Formats of `importFrom`; none when it is not there. */
  readonly importFormats?: readonly string[];
  /** Reads a machine from a file. @throws STREAM_MALFORMED, VM_UNSUPPORTED for one that Cairn could not restore */
  importFrom?(request: ImportRequest): Promise<ImportedMachine>;
  /**
   * Takes a running machine from the stream in which the hypervisor's own tools replicate it. Returns when its first whole state is there.
   * @throws STREAM_MALFORMED, VM_UNSUPPORTED for one whose states could not be restored, VM_UNREACHABLE
   */
  receive?(request: ReceiveRequest): Promise<ReceivedMachine>;
  /** Writes the checkpoint in a format of the hypervisor's own tools. @returns bytes written */
  exportTo(source: CheckpointSource, format: string, sink: Writable, signal?: AbortSignal): Promise<number>;
}

/** A machine as a file of the hypervisor's own tools holds it, without its memory. */
export interface ImportedMachine {
  readonly identity: Omit<VmIdentity, 'instance'>;
  /** As `Vm.machine`. */
  readonly machine: JsonObject;
  /** As `Vm.takeDeviceState`. */
  readonly deviceState: Uint8Array;
}

/** Where an import puts pages; the last one of a page counts. A page that was never put is absent. */
export interface MemorySink {
  put(page: number, bytes: Uint8Array): void;
  putZero(page: number): void;
}

export interface ImportRequest {
  readonly format: string;
  /** The file from its start; may be called more than once. */
  readonly open: () => AsyncIterable<Uint8Array>;
  /** Called once, when the layout of the memory is known. */
  readonly place: (layout: MemoryLayout) => MemorySink;
}

export type ReceivingHypervisor = Hypervisor & Required<Pick<Hypervisor, 'receive'>>;

export interface ReceiveRequest {
  /** Read on at once, whatever becomes of what was read: the machine stands still until it is. */
  readonly stream: AsyncIterable<Uint8Array>;
  /** Where what was read is kept until it is applied: a folder that is nobody else's. */
  readonly workDir: string;
  /** Called for each whole state, with the pages that came for it. */
  readonly onState?: (state: number, pageCount: number) => void;
}

/** A machine that runs elsewhere and sends its states, each of one instant: first whole, then what has changed. */
export interface ReceivedMachine extends Omit<ImportedMachine, 'deviceState'> {
  /** What changes are known by: the kind of a tracker. */
  readonly trackerKind: string;
  readonly layout: MemoryLayout;
  /** Waits for a whole state that was not claimed yet. @returns false when the stream has ended @throws STREAM_MALFORMED and what reading it throws */
  nextState(): Promise<boolean>;
  /**
   * The newest whole state. Those before it that were not applied are in it.
   * @throws VM_UNSUPPORTED when the machine has become one whose changes are not all in the stream
   */
  claim(): Promise<ReceivedState>;
  /** Takes nothing more of the stream, which is its owner's to end. */
  close(): void;
}

export interface ReceivedState {
  /** Counted from 1. */
  readonly number: number;
  /** How many of the stream's states it stands for. */
  readonly stateCount: number;
  readonly pageCount: number;
  /** How long the machine stood still to send the last of them; undefined when that cannot be told from the stream. */
  readonly pauseMs: number | undefined;
  /** Puts the pages that came, and gives the rest of the state, as `Vm.takeDeviceState`. What fails here may be done again. */
  apply(memory: MemorySink): Promise<Uint8Array>;
}

export interface AttachOptions {
  /** Folder of this host for sockets and small state, 0700; see `host/runtime-dir.ts`. */
  readonly runtimeDir: string;
  /** How long to wait for a job of the VM's manager (a save, a backup) to end; default 0: refuse. */
  readonly waitJobMs?: number | undefined;
  /** Socket of the agent in the guest, where it is not found by itself. */
  readonly guestAgent?: string | undefined;
  /** Room for the snapshot of a thick logical volume, as lvcreate takes it: 10G, 20%ORIGIN. */
  readonly volumeSnapshotSize?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

export class HypervisorRegistry {
  readonly #all: readonly Hypervisor[];

  constructor(hypervisors: readonly Hypervisor[]) {
    this.#all = hypervisors;
  }

  /** @throws VM_ADDRESS for a scheme that nobody serves */
  forAddress(address: string): Hypervisor {
    const scheme = address.slice(0, Math.max(0, address.indexOf(':')));
    const found = this.#all.find((hypervisor) => hypervisor.schemes.includes(scheme));
    if (found !== undefined) return found;
    const known = this.#all.flatMap((hypervisor) => hypervisor.schemes).map((known) => `${known}:`);
    throw new CheckpointError('VM_ADDRESS', `"${address}" is not the address of a VM`, {
      hint: `an address starts with ${known.join(' or ')}, for example qmp:/run/web1.qmp`,
    });
  }

  /** @throws USAGE for a format that nobody reads */
  importing(format: string): Hypervisor {
    const found = this.#all.find(({ importFormats = [] }) => importFormats.includes(format));
    if (found?.importFrom !== undefined) return found;
    const known = this.#all.flatMap(({ importFormats = [] }) => importFormats);
    throw new CheckpointError('USAGE', `no import format "${format}"`, {
      hint: `known: ${known.join(', ')}`,
    });
  }

  /** The one that takes machines from a stream. @throws VM_UNSUPPORTED when there is none */
  receiving(): ReceivingHypervisor {
    const found = this.#all.find(
      (hypervisor): hypervisor is ReceivingHypervisor => hypervisor.receive !== undefined,
    );
    if (found !== undefined) return found;
    throw new CheckpointError('VM_UNSUPPORTED', 'no adapter takes machines from a stream');
  }

  /** @throws VM_UNSUPPORTED when a checkpoint comes from a hypervisor that is not registered */
  byName(name: string): Hypervisor {
    const found = this.#all.find((hypervisor) => hypervisor.name === name);
    if (found !== undefined) return found;
    throw new CheckpointError('VM_UNSUPPORTED', `no adapter for the hypervisor "${name}"`);
  }
}
