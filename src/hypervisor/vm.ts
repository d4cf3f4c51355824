/** The contract of an attached virtual machine. Implemented by the adapters, driven by `checkpoint/`. */

import type { JsonObject } from '../types.js';
import type { VmDisks } from './disks.js';
import type { DirtyTracker, TrackerReport } from './dirty-tracker.js';
import type { GuestReaderDescription } from './guest-reader.js';
import type { MemoryLayout } from './memory-layout.js';

/** Who the VM is. What is known of these decides which chain of a repository it belongs to. */
export interface VmIdentity {
  readonly hypervisor: string;
  /** What the operator calls it; empty when it has no name. */
  readonly name: string;
  /** Empty when it has none. */
  readonly uuid: string;
  /** Resolved machine type, such as pc-i440fx-7.2. */
  readonly machineType: string;
  /**
   * Names this run of this VM on this host (process id and start time, or domain id and boot): equal only for the
   * same uninterrupted instance.
   */
  readonly instance: string;
}

/** Of a guest whose file systems were frozen in the pause. */
export interface FrozenGuest {
  readonly fileSystemCount: number;
}

export type RunState = 'running' | 'paused' | 'other';

/** What VM and host allow, found out before anything is paused. */
export interface VmReport {
  readonly trackers: readonly TrackerReport[];
  /** Things that let writes escape a tracker or hinder a restore, in words for the operator. */
  readonly hazards: readonly VmHazard[];
}

export interface VmHazard {
  /** Stable: VFIO_DEVICE, VHOST_USER, MEMORY_HOTPLUG and so on. */
  readonly code: string;
  readonly text: string;
  /** `compare`: trackers are not trusted, all pages are compared in the pause. `refuse`: no checkpoint is taken. */
  readonly effect: 'compare' | 'refuse' | 'note';
}

export interface Vm {
  readonly address: string;
  readonly identity: VmIdentity;
  /** Everything the adapter needs to start the machine again. JSON that the core stores and never reads. */
  readonly machine: JsonObject;

  /** The present regions. Asks the hypervisor anew each time: blocks come and go with hotplug. @throws VM_GONE */
  memoryLayout(): Promise<MemoryLayout>;
  /** How a worker reads this VM's memory, for the layout last returned. */
  guestReader(): GuestReaderDescription;

  /** What a checkpoint of this VM can rely on. Changes nothing. */
  inspect(): Promise<VmReport>;
  /** A tracker of that kind for the present layout, not started yet. @throws TRACKER_UNAVAILABLE for a kind it does not know or cannot use */
  tracker(kind: string): DirtyTracker;

  runState(): Promise<RunState>;
  /**
   * Stops the vCPUs and waits for device I/O in flight.
   * @param stopping called right before the VM is asked to stop; up to then it has run all the time
   * @returns true when the VM was running and this call stopped it, false when it was paused already
   * @throws VM_STATE when it is neither, with nothing changed; VM_GONE; QMP_TIMEOUT, after which it may stand still
   */
  pause(stopping?: () => void): Promise<boolean>;
  /**
   * Undoes `pause`: does nothing to a VM that this object did not stop.
   * @param running called as soon as the hypervisor says that the VM runs again, which is proven after that
   * @throws VM_NOT_RESUMED when the VM does not run afterwards; VM_STATE when somebody else has resumed it before, so that
   * what was read in the pause is not of one moment: it runs, or stands still for their reasons; VM_GONE
   */
  resume(running?: () => void): Promise<void>;
  /**
   * Has the hypervisor write the device state of the paused VM aside, so that `takeDeviceState` can pick it up once the
   * VM runs again. May write to guest memory: harvest after it, not before. Under way when this returns.
   */
  saveDeviceState(): Promise<void>;
  /** The bytes of the last `saveDeviceState`; caller owns them, the aside copy is gone. */
  takeDeviceState(): Promise<Uint8Array>;

  /**
   * Has the agent in the guest write out and freeze its file systems, until `thaw`. Should this process die before that, they are
   * thawed all the same. Absent where there are no agents.
   * @param limitMs for the agent's answer
   * @returns how many were frozen, at least one
   * @throws GUEST_AGENT, VM_STATE, VM_UNSUPPORTED with nothing frozen; GUEST_FROZEN
   */
  freeze?(limitMs: number): Promise<number>;
  /** Of a VM that runs. @throws GUEST_FROZEN */
  thaw?(): Promise<void>;

  readonly disks: VmDisks;

  /** Lets go of the VM as it is: tracker armed, run state untouched. */
  close(): Promise<void>;
}
