/** Disks of a VM, and what a checkpoint keeps of them. */

export interface VmDisk {
  /** What the hypervisor calls it (a QEMU node or device name). */
  readonly id: string;
  readonly path: string;
  readonly format: string;
  readonly writable: boolean;
  readonly virtualSizeBytes: number;
  /** The modes in which it can be snapshotted inside a pause; empty when it cannot. */
  readonly snapshotModes: readonly DiskSnapshotMode[];
  /** Why there are none, where more can be said than that the format has none. */
  readonly whyNoSnapshot?: string;
  /** What lies below `path`, top first, named as the hypervisor does. */
  readonly backingPaths?: readonly string[];
}

/** `internal`, `external`: of qcow2 images. `lvm`: of logical volumes of this host. `rbd`: of images of Ceph. */
export type DiskSnapshotMode = 'internal' | 'external' | 'lvm' | 'rbd';

/** A disk snapshot that belongs to a checkpoint; kept in the manifest, understood by the adapter that made it. */
export interface DiskSnapshot {
  readonly diskId: string;
  readonly path: string;
  readonly mode: DiskSnapshotMode;
  /** Internal: the snapshot's name in `path`. External: empty. LVM: the snapshot's name in the volume group. RBD: that in the image. */
  readonly snapshotName: string;
  /** External: the overlay that the running VM writes to from then on; `path` holds the state at the checkpoint. */
  readonly overlayPath: string;
  /** External: `path` and what lies below it, as they were then. Absent in checkpoints of versions that did not record it. */
  readonly frozen?: readonly FrozenLayer[];
  /** LVM: the volume of which this is a snapshot. */
  readonly volume?: SnapshotVolume;
  /** RBD: the image of which this is a snapshot. */
  readonly image?: SnapshotImage;
}

export interface SnapshotVolume {
  readonly vgName: string;
  readonly name: string;
  /** As lvm2 writes it. */
  readonly uuid: string;
}

/** Texts that nothing was said of are empty. */
export interface SnapshotImage {
  readonly pool: string;
  readonly namespace: string;
  readonly name: string;
  /** Of the image, by Ceph. */
  readonly id: string;
  /** Path of the ceph.conf by which the cluster is found. */
  readonly conf: string;
  /** Without `client.`. */
  readonly user: string;
  /** `host:port`, with commas between. */
  readonly monitors: string;
}

/** A file that a checkpoint needs unchanged, and what shows that it is. */
export interface FrozenLayer {
  /** Absolute. */
  readonly path: string;
  readonly sizeBytes: number;
  /** Time of the last write in nanoseconds since 1970, decimal: more than a number holds. */
  readonly mtimeNs: string;
}
