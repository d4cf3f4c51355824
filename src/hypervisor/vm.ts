/**
 * The contract of an attached virtual machine. Implemented by the adapters, driven by `checkpoint/`. Each
 * part of it that can be replaced on its own is an object of its own: a manager such as libvirt hands on
 * those of its QEMU and brings what it does itself.
 */

import type { JsonObject } from '../types.js';
import type { VmDisks } from './disks.js';
import type { VmDeviceState } from './device-state.js';
import type { TrackerReport } from './dirty-tracker.js';
import type { ForkOrigin } from './fork-origin.js';
import type { VmFreezer } from './freezer.js';
import type { VmMemory } from './memory.js';
import type { MemoryLayout } from './memory-layout.js';
import type { VmRewind } from './rewind.js';
import type { VmRunState } from './run-state.js';

/** Who the VM is. What is known of these decides which chain of a repository it belongs to. */
export interface VmIdentity {
  readonly hypervisor: string;
  /** What the operator calls it; empty when it has no name. */
  readonly name: string;
  /** UUID of the VM; empty when it has none. */
  readonly uuid: string;
  /** Resolved machine type, such as pc-i440fx-7.2. */
  readonly machineType: string;
  /**
   * Names this run of this VM on this host (process id and start time, or domain id and boot): equal only for
   * the same uninterrupted instance.
   */
  readonly instance: string;
}

/** A VM as a checkpoint has recorded it. */
export interface RecordedVm {
  readonly identity: VmIdentity;
  readonly machine: JsonObject;
  readonly layout: MemoryLayout;
}

export interface VmProcess {
  readonly pid: number;
  /** Clock ticks since boot, as in /proc/PID/stat. */
  readonly startTime: string;
}

/** What VM and host allow, found out before anything is paused. */
export interface VmReport {
  readonly trackers: readonly TrackerReport[];
  /** Things that let writes escape a tracker or hinder a restore, in words for the operator. */
  readonly hazards: readonly VmHazard[];
}

export interface VmHazard {
  /** Stable: VFIO_DEVICE, VHOST_USER, MIGRATION_BLOCKED and so on. */
  readonly code: string;
  readonly text: string;
  /**
   * `compare`: trackers are not trusted, all pages are compared in the pause. `refuse`: no checkpoint is
   * taken.
   */
  readonly effect: 'compare' | 'refuse' | 'note';
  /** A note that whoever takes checkpoints has to know of, and not only who asks `cairn doctor`. */
  readonly warns?: true;
  /** What an operator would change, where that is known. */
  readonly remedy?: string;
}

export interface Vm {
  readonly address: string;
  readonly identity: VmIdentity;
  /** The process of this host that runs the VM; absent where it is none, or where it cannot be seen. */
  readonly process?: VmProcess;
  /** Everything the adapter needs to start the machine again. JSON that the core stores and never reads. */
  readonly machine: JsonObject;

  /** The checkpoint that it was forked from; absent where it was not, or where nobody knows. */
  readonly forkedFrom?: ForkOrigin | undefined;

  /**
   * What a Cairn that was killed had left of this VM, and attaching to it has put right: in words for the
   * operator.
   */
  readonly recovered?: readonly string[];

  readonly memory: VmMemory;
  readonly runState: VmRunState;
  readonly deviceState: VmDeviceState;
  /** Absent where there are no agents in guests. */
  readonly freezer?: VmFreezer;
  /** Absent where a running VM cannot be put back in its own process. */
  readonly rewind?: VmRewind;

  /**
   * What tells this VM from the one of a checkpoint, in words for the operator; empty when it may be the same. Absent
   * where VMs always have a UUID.
   */
  differencesFrom?(before: RecordedVm): Promise<readonly string[]>;

  /** What a checkpoint of this VM can rely on. Changes nothing. */
  inspect(): Promise<VmReport>;

  readonly disks: VmDisks;

  /** Lets go of the VM as it is: tracker armed, run state untouched. */
  close(): Promise<void>;
}
