/** What a restore and an export are given, and what they answer. */

import type { JsonObject } from '../types.js';
import type { DiskSnapshot } from './disks.js';
import type { MemoryLayout } from './memory-layout.js';
import type { FrozenGuest } from './freezer.js';
import type { StartPageServer } from './page-server.js';

/**
 * Pages that follow each other in one region. `bytes` is null for a run of zero pages, otherwise pageCount x 4096 bytes valid
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
  /** All pages of all regions, in ascending order. @throws REPO_DAMAGED */
  pages(signal?: AbortSignal): AsyncIterable<PageChunk>;
  /** All pages of all regions, each once, in the order that costs least to read. @throws REPO_DAMAGED */
  pagesAsStored(signal?: AbortSignal): AsyncIterable<PageChunk>;
}

/** What every adapter is asked for. Its own options come beside: see `restore-options.ts`. */
export interface RestoreRequest {
  readonly paused: boolean;
  /** Leave the disks as they are instead of rolling them back to the checkpoint. */
  readonly keepDisks: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  /** Starts a process that fills the VM's memory while it runs; absent where the caller cannot. */
  readonly startPageServer?: StartPageServer;
}

/** What a restore would do to this host, for who has to decide whether the checkpoint is to be trusted. */
export interface RestorePlan {
  /** Programs with their arguments. */
  readonly commands: readonly (readonly string[])[];
  /** Whatever else of the recorded machine decides what is run or opened, a line each. */
  readonly details: readonly string[];
  /** Disks that are rolled back. */
  readonly disks: readonly string[];
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
  /** What is not as it was although all went well, for the operator. */
  readonly notes?: readonly string[];
}
