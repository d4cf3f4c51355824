/**
 * Disks in qcow2 images. libxl gives a domain that has one (backend `qdisk`) a QEMU in dom0, also a PVH or PV
 * guest, for which it emulates nothing and only serves the images. That QEMU snapshots them, as on KVM.
 *
 * The QEMU of an HVM guest opens each image twice, for the emulated controller and for the PV driver, and
 * neither sees what the other writes. A guest with Xen drivers unplugs the emulated one when it boots: then
 * the image is open once. One that has not is refused.
 *
 * The monitor serves one client at a time and is libxl's own, so it is held for a single exchange, or for the
 * stop of a guest with a device model. QEMU waits for the requests that it has taken from the guest's ring
 * before it snapshots. Requests that it takes later, and requests that the guest had no answer to when it
 * suspended itself, need no care: see docs/xen.md, "Disks".
 *
 * Sources: tools/libs/light/libxl_dm.c (the monitor's path), hw/block/xen-block.c of QEMU (which opens images
 * without locks).
 */

import { CheckpointError, isCheckpointError } from '../../../src/errors.js';
import type { VmDisk } from '../../../src/hypervisor/disks.js';
import { monitorImages } from '../../disks/qcow2/monitor-snapshots.js';
import { INTERNAL, type InternalSnapshot } from '../../disks/qcow2/qcow2-records.js';
import type { ImageSnapshots } from '../../disks/qcow2/snapshot-takers.js';
import { listDisks } from '../../qemu/block-devices.js';
import { connectMonitor, exchangeAt, monitorPath, type ExchangeWithMonitor } from './device-model.js';

export class Qcow2Disks implements ImageSnapshots {
  readonly #withMonitor: ExchangeWithMonitor;

  /** @param exchange of a guest with a device model: through the monitor that is held in its stop */
  constructor(domid: number, exchange: ExchangeWithMonitor = exchangeAt(monitorPath(domid), connectMonitor)) {
    this.#withMonitor = exchange;
  }

  /**
   * The same disks, with size and snapshot modes of those that a QEMU serves as qcow2. Asks it only when
   * there is one.
   * @throws VM_BUSY
   */
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
      const [image, ...more] = isCandidate(disk) ? imagesOf(disk, served) : [];
      if (image === undefined) return disk;
      if (more.length > 0) return { ...disk, whyNoSnapshot: OPEN_TWICE };
      return { ...disk, virtualSizeBytes: image.virtualSizeBytes, snapshotModes: [INTERNAL] };
    });
  }

  /** All or none, of the suspended guest. @throws DISK_SNAPSHOT_FAILED, see `VmDisks.snapshot` */
  take(snapshots: readonly InternalSnapshot[]): Promise<void> {
    return this.#withMonitor(async (monitor) => {
      const served = await listDisks(monitor);
      const images = snapshots.map((snapshot) => {
        const { diskId, path } = snapshot;
        const [image, ...more] = imagesOf(snapshot, served);
        if (image === undefined) throw refused(`no QEMU serves the disk ${diskId} (${path})`);
        if (more.length > 0) throw refused(`disk ${diskId} (${path}): ${OPEN_TWICE}`);
        return { ...snapshot, diskId: image.id };
      });
      await monitorImages(monitor).take(images);
    });
  }

  drop(snapshots: readonly InternalSnapshot[]): Promise<void> {
    return this.#withMonitor(async (monitor) => {
      const served = await listDisks(monitor);
      const renamed = snapshots.map((snapshot) => ({
        ...snapshot,
        diskId: imagesOf(snapshot, served)[0]?.id ?? snapshot.diskId,
      }));
      await monitorImages(monitor).drop(renamed);
    });
  }
}

const OPEN_TWICE = 'the guest has the image twice, behind an emulated controller and behind the PV backend';

function isCandidate({ format, writable }: VmDisk): boolean {
  return format === 'qcow2' && writable;
}

function imagesOf({ path }: Pick<VmDisk, 'path'>, served: readonly VmDisk[]): readonly VmDisk[] {
  return served.filter((image) => image.path === path && isCandidate(image));
}

function refused(why: string): CheckpointError {
  return new CheckpointError('DISK_SNAPSHOT_FAILED', why, {
    hint: 'snapshot it with --hook, or leave it alone with --memory-only',
  });
}
