/**
 * Who snapshots qcow2 images that a VM has open: differs by hypervisor, and is given to the drivers in
 * `DiskMeans`.
 */

import type { VmDisk } from '../../../src/hypervisor/disks.js';
import type { ExternalSnapshot, InternalSnapshot } from './qcow2-records.js';

export interface ImageSnapshots {
  /**
   * The same disks; those that `take` can snapshot with the mode `internal` added. Absent: all writable disks
   * in qcow2 images.
   */
  describe?(disks: readonly VmDisk[]): Promise<readonly VmDisk[]>;
  /** Snapshots all disks of the paused VM, or none. @throws as `VmDisks.snapshot` */
  take(snapshots: readonly InternalSnapshot[]): Promise<void>;
  /** @throws DISK_SNAPSHOT_FAILED naming what stays behind */
  drop(snapshots: readonly InternalSnapshot[]): Promise<void>;
}

export interface OverlaySnapshots {
  /** Makes all overlays and has the paused VM write to them, or none. @throws as `VmDisks.snapshot` */
  take(snapshots: readonly ExternalSnapshot[]): Promise<void>;
}
