/** The contract of a hypervisor adapter. */

import type { Writable } from 'node:stream';

import type { JsonObject } from '../types.js';
import type { RecordedDisks } from './disks.js';
import type {
  ForeignFile,
  ImportedMachine,
  ImportFormat,
  ImportRequest,
  ReceivedMachine,
  ReceiveRequest,
} from './intake.js';
import type { ForkRequest, VmForks } from './fork.js';
import type { CheckpointSource, RestorePlan, RestoreRequest, RestoreResult } from './restore.js';
import type { AnyRestoreOptions, RestoreSettings } from './restore-options.js';
import type { Vm } from './vm.js';

/** A VM of this host, as it is seen from outside. */
export interface RunningVm {
  readonly address: string;
  /** Its own name; empty when it has none. */
  readonly name: string;
  /** The same for all addresses of one VM, and another one when it is started again. */
  readonly instance: string;
}

/** Something that this host has or lacks. */
export interface HostFinding {
  readonly part: string;
  readonly usable: boolean;
  /** Why not, and what helps; where it is usable, more about it, or nothing. */
  readonly reason: string;
}

export interface Hypervisor {
  /** `kvm`, `xen`: what a manifest records. */
  readonly name: string;
  /** Schemes of VM addresses that it serves, such as `qmp`. */
  readonly schemes: readonly string[];
  /** Formats of `exportTo`. */
  readonly exportFormats: readonly string[];
  /**
   * Attaches to a VM without changing its state.
   * @throws VM_ADDRESS, VM_UNREACHABLE, VM_BUSY, VM_PERMISSION, VM_UNSUPPORTED
   */
  attach(address: string, options: AttachOptions): Promise<Vm>;
  /**
   * VMs of this host that run and that the caller can see, without a word to them. Never rejects: what cannot be seen
   * is not there. Absent where nobody looks for them.
   */
  running?(signal?: AbortSignal): Promise<readonly RunningVm[]>;
  /** What this host offers for its VMs, whichever they are. Never rejects. Absent where there is nothing to say. */
  hostFindings?(): Promise<readonly HostFinding[]>;
  /** Options that its restores have, by name. */
  readonly restoreOptions: AnyRestoreOptions;
  /**
   * What `restore` would do with the same arguments. Touches nothing. Where it is absent, a restore is taken
   * to do anything.
   * @throws USAGE, RESTORE_FAILED, VM_UNSUPPORTED as `restore` would
   */
  planRestore?(
    source: CheckpointSource,
    request: RestoreRequest,
    settings: RestoreSettings,
  ): Promise<RestorePlan>;
  /**
   * @param settings options of `restoreOptions` alone, see `refuseForeignSettings`
   * @throws RESTORE_TARGET_BUSY, RESTORE_FAILED, VM_UNSUPPORTED, STREAM_MALFORMED
   */
  restore(
    source: CheckpointSource,
    request: RestoreRequest,
    settings: RestoreSettings,
  ): Promise<RestoreResult>;
  /**
   * Prepares forks of a checkpoint. Touches nothing. Absent where no VM can be forked.
   * @throws FORK_REFUSED, DISK_NOT_COVERED, VM_UNSUPPORTED, RESTORE_FAILED, RESTORE_RIGHTS, RESTORE_REPLACEABLE, USAGE
   */
  planForks?(source: CheckpointSource, request: ForkRequest): Promise<VmForks>;
  /** URL of the module with which a page server fills its VMs; absent where none can. See `page-server.ts`. */
  readonly pageServingModule?: string;
  /**
   * Disk snapshots of a VM that does not run. Absent where no VM has any.
   * @param machine `Vm.machine` as it was recorded
   */
  recordedDisks?(machine: JsonObject): RecordedDisks;
  /** Formats of `importFrom`; none when it is not there. */
  readonly importFormats?: readonly ImportFormat[];
  /** Files of its tools that cannot be imported, and what to do instead. */
  readonly foreignFiles?: readonly ForeignFile[];
  /**
   * Reads a machine from a file.
   * @throws STREAM_MALFORMED, VM_UNSUPPORTED for one that Cairn could not restore, USAGE when a program that
   *   unpacks it is missing
   */
  importFrom?(request: ImportRequest): Promise<ImportedMachine>;
  /**
   * Takes a running machine from the stream in which the hypervisor's own tools replicate it. Returns when
   * its first whole state is there.
   * @throws STREAM_MALFORMED, VM_UNSUPPORTED for one whose states could not be restored, VM_UNREACHABLE
   */
  receive?(request: ReceiveRequest): Promise<ReceivedMachine>;
  /** Writes the checkpoint in a format of the hypervisor's own tools. @returns bytes written */
  exportTo(source: CheckpointSource, format: string, sink: Writable, signal?: AbortSignal): Promise<number>;
}

/** Options of disk drivers, by name of the driver. Only the driver reads its own. */
export type DiskDriverOptions = Readonly<Record<string, JsonObject>>;

export interface AttachOptions {
  /** Folder of this host for sockets and small state, 0700; see `host/runtime-dir.ts`. */
  readonly runtimeDir: string;
  /** How long to wait for a job of the VM's manager (a save, a backup) to end; default 0: refuse. */
  readonly waitJobMs?: number | undefined;
  /** Socket of the agent in the guest, where it is not found by itself. */
  readonly guestAgent?: string | undefined;
  readonly diskOptions?: DiskDriverOptions | undefined;
  /** Take also a VM that its recorded description does not start any more, as its devices came or went. */
  readonly allowChangedMachine?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}
