/**
 * Disks in qcow2 images. libxl gives a domain that has one (backend `qdisk`) a QEMU in dom0, also a PVH or PV guest, for which it emulates
 * nothing and only serves the images. That QEMU snapshots them, as on KVM.
 *
 * Its monitor serves one client at a time and is libxl's own, so it is held for a single exchange only. It waits for the requests that
 * it has taken from the guest's ring before it snapshots. Those that it takes later, and those that the guest had no answer to when it
 * suspended itself, need no care: see docs/xen.md, "Disks".
 *
 * Sources: tools/libs/light/libxl_dm.c (the monitor's path), hw/block/xen-block.c of QEMU (which opens images without locks).
 */

import { CheckpointError, isCheckpointError } from '../../src/errors.js';
import type { DiskSnapshot, DiskSnapshotMode, VmDisk } from '../../src/hypervisor/vm.js';
import { dropDiskSnapshots, listDisks, snapshotDisks } from '../kvm/disks.js';
import type { Monitor } from '../kvm/monitor.js';
import { connectMonitor, monitorPath, type ConnectMonitor } from './device-model.js';

export class Qcow2Disks {
  readonly #path: string;
  readonly #connect: ConnectMonitor;

  constructor(domid: number, connect: ConnectMonitor = connectMonitor) {
    this.#path = monitorPath(domid);
    this.#connect = connect;
  }

  /** The same disks, with size and snapshot modes of those that a QEMU serves as qcow2. Asks it only when there is one. @throws VM_BUSY */
  async describe(disks: readonly VmDisk[]): Promise<readonly VmDisk[]> {
    if (!disks.some(isCandidate)) return disks;
    let served: readonly VmDisk[];
    try {
      served = await this.#withMonitor(listDisks);
    } catch (error) {
      // Without its QEMU a disk cannot be snapshotted, which the plan of the checkpoint says.
      if (isCheckpointError(error, 'VM_UNREACHABLE')) return disks;
      throw error;
    }
    return disks.map((disk) => {
      const image = isCandidate(disk) ? imageOf(disk, served) : undefined;
      if (image === undefined) return disk;
      return { ...disk, virtualSizeBytes: image.virtualSizeBytes, snapshotModes: ['internal'] };
    });
  }

  /** All or none, of the suspended guest. @throws DISK_SNAPSHOT_FAILED, see `Vm.snapshotDisks` */
  async snapshot(
    name: string,
    disks: readonly VmDisk[],
    mode: DiskSnapshotMode,
  ): Promise<readonly DiskSnapshot[]> {
    if (mode !== 'internal') throw refused(`no ${mode} snapshots on Xen`);
    return this.#withMonitor(async (monitor) => {
      const served = await listDisks(monitor);
      const images = disks.map((disk) => {
        const image = imageOf(disk, served);
        if (image === undefined) throw refused(`no QEMU serves the disk ${disk.id} (${disk.path})`);
        return image;
      });
      const taken = await snapshotDisks(monitor, name, images, mode);
      return taken.map((snapshot, i) => ({ ...snapshot, diskId: disks[i]!.id, path: disks[i]!.path }));
    });
  }

  /** @throws DISK_SNAPSHOT_FAILED naming what stays behind */
  drop(snapshots: readonly DiskSnapshot[]): Promise<void> {
    return this.#withMonitor(async (monitor) => {
      const served = await listDisks(monitor);
      const renamed = snapshots.map((snapshot) => ({
        ...snapshot,
        diskId: imageOf(snapshot, served)?.id ?? snapshot.diskId,
      }));
      await dropDiskSnapshots(monitor, renamed);
    });
  }

  async #withMonitor<T>(use: (monitor: Monitor) => Promise<T>): Promise<T> {
    const monitor = await this.#connect(this.#path);
    try {
      return await use(monitor);
    } finally {
      await monitor.close();
    }
  }
}

/** Those of an HVM guest are served twice by the same QEMU, to the emulated controller and to the PV driver: not tried. */
export function withoutSnapshots(disks: readonly VmDisk[]): readonly VmDisk[] {
  return disks.map((disk) =>
    isCandidate(disk) ? { ...disk, whyNoSnapshot: 'images of HVM guests were not tried' } : disk,
  );
}

function isCandidate({ format, writable }: VmDisk): boolean {
  return format === 'qcow2' && writable;
}

function imageOf({ path }: Pick<VmDisk, 'path'>, served: readonly VmDisk[]): VmDisk | undefined {
  return served.find((image) => image.path === path && image.snapshotModes.includes('internal'));
}

function refused(why: string): CheckpointError {
  return new CheckpointError('DISK_SNAPSHOT_FAILED', why, {
    hint: 'snapshot it with --hook, or leave it alone with --memory-only',
  });
}
