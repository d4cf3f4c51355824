/** What a restore and an export are given, and what they answer. */

import type { JsonObject } from '../types.js';
import type { DiskSnapshot } from './disks.js';
import type { MemoryLayout } from './memory-layout.js';
import type { FrozenGuest } from './freezer.js';

/**
 * Pages in ascending order. `bytes` is null for a run of zero pages, otherwise pageCount x 4096 bytes valid
 * until the next chunk.
 */
export interface PageChunk {
  readonly firstPage: number;
  readonly pageCount: number;
  readonly bytes: Uint8Array | null;
}

/** What a restore or an export needs of one checkpoint, verified while it is read. */
export interface CheckpointSource {
  readonly checkpointId: string;
  readonly hypervisor: string;
  /** `Vm.machine` as it was recorded. */
  readonly machine: JsonObject;
  readonly machineType: string;
  readonly layout: MemoryLayout;
  readonly disks: readonly DiskSnapshot[];
  /** Set when the guest's file systems were frozen, and so are in this memory; see `VmFreezer.freeze`. */
  readonly frozen?: FrozenGuest | undefined;
  deviceState(): Promise<Uint8Array>;
  /** All pages of all regions, region by region. @throws REPO_DAMAGED */
  pages(signal?: AbortSignal): AsyncIterable<PageChunk>;
}

/** Changes to a machine that a manager such as libvirt describes and starts. */
export interface DescriptionEdits {
  /** Restores under another name, and with it under another UUID. */
  readonly newName?: string;
  readonly newMacs: boolean;
  /** Disks that lie elsewhere now, each `DISK=PATH`, DISK as the manager calls it. */
  readonly diskPaths: readonly string[];
  /** Shell command: gets the description on stdin, writes the changed one to stdout. */
  readonly command?: string;
}

export interface RestoreRequest {
  /**
   * Undefined: start a new VM. Otherwise an address that waits for an incoming stream, such as unix:/path or
   * tcp:host:port.
   */
  readonly target?: string;
  /** Replace (or add) arguments of the recorded command line, each `-option=value` or `-flag`. */
  readonly setArgs: readonly string[];
  readonly dropArgs: readonly string[];
  /** Only where a manager starts the VM. */
  readonly edits?: DescriptionEdits;
  /** Runs another program than the recorded one. */
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
